"""The table of photographs: predicted figures, and those of masks that a person has corrected."""

import csv
import gzip
import io

import numpy as np
import pytest
from data_sets import photo
from open_page import ended
from tiny_model import save_tiny

from data.images import write_image
from page import table


def drop(client, tmp_path, count: int) -> str:
    """The address of a new collection of photographs of 48x64 pixels."""
    made = client.post("/api/collections", json={"title": "mine"}).json()["id"]
    base = f"/api/collections/{made}"
    for number in range(count):
        write_image(tmp_path / f"{number}.png", photo(number))
        content = (tmp_path / f"{number}.png").read_bytes()
        client.put(f"{base}/photographs?name=leaf{number}.png", content=content)
    return base


def save(client, address: str, rows: int, index: int = 1) -> None:
    """Paint the topmost rows of a photograph and nothing else."""
    mask = np.zeros((48, 64), np.uint8)
    mask[:rows] = index
    content, seen = gzip.compress(mask.tobytes()), {"if-match": "*"}
    assert client.put(f"{address}/mask", content=content, headers=seen).status_code == 204


def download(client, base: str) -> list[dict]:
    wish = {"what": "results.csv", "id": base.rpartition("/")[2]}
    url = client.post("/api/tickets", json=wish).json()["url"]
    return list(csv.DictReader(io.StringIO(client.get(url).text)))


def test_a_corrected_mask_is_counted_and_has_no_interval(desk, client, tmp_path, monkeypatch):
    save_tiny(desk.trainings.folder / "one" / "best_model_iou.pth")
    base = drop(client, tmp_path, 3)
    assert ended(client, client.post(f"{base}/segment", json={}).json())["state"] == "done"
    before = client.get(base).json()["photographs"]
    assert sorted(row["rank"] for row in before) == [0, 1, 2]
    doubt = {row["rank"]: 1 - row["figures"]["confidence"] for row in before}
    assert doubt[0] >= doubt[1] >= doubt[2]
    address = f"{base}/photographs/{before[1]['id']}"
    save(client, address, rows=12)
    row = client.get(address).json()
    assert row["corrected"]
    assert row["figures"]["severity"] == 0.25
    assert (row["figures"]["pixels_disease"], row["figures"]["regions_disease"]) == (12 * 64, 1)
    assert not {"confidence", "severity_low", "severity_high"} & row["figures"].keys()
    after = client.get(base).json()["photographs"]
    assert after == [before[0], row, before[2]]
    assert [line["corrected"] for line in download(client, base)] == ["no", "yes", "no"]
    line, other = download(client, base)[1::-1]
    assert (float(line["severity"]), line["confidence"], line["width"]) == (0.25, "", "64")
    assert float(other["severity"]) == before[0]["figures"]["severity"]
    with monkeypatch.context() as patch:
        patch.setattr(table, "read_labels", lambda path: 1 / 0)
        assert client.get(address).json() == row  # no mask is read twice
    save(client, address, rows=24)
    assert client.get(address).json()["figures"]["severity"] == 0.5
    for path in (desk.space.path / "counted").rglob("*.json"):
        path.write_text("[1")
    assert client.get(address).json()["figures"]["severity"] == 0.5


def test_a_correction_that_cannot_be_read_keeps_no_other_from_being_seen(desk, client, tmp_path):
    save_tiny(desk.trainings.folder / "one" / "best_model_iou.pth")
    base = drop(client, tmp_path, 2)
    assert ended(client, client.post(f"{base}/segment", json={}).json())["state"] == "done"
    rows = client.get(base).json()["photographs"]
    save(client, f"{base}/photographs/{rows[0]['id']}", rows=12)
    [mask] = desk.corrections.root.glob("*/*_masks/*.png")
    mask.write_bytes(mask.read_bytes()[:60])
    damaged, other = client.get(base).json()["photographs"]
    assert other == rows[1]
    assert (damaged["corrected"], damaged["figures"]) == (True, {})
    line = download(client, base)[0]
    assert (line["corrected"], line["width"], line["severity"]) == ("yes", "64", "")
    address = f"{base}/photographs/{rows[0]['id']}"
    assert client.get(f"{address}/mask").headers["x-origin"] == "prediction"
    save(client, address, rows=24)  # painted anew
    assert client.get(f"{address}/mask").headers["x-origin"] == "correction"
    assert client.get(address).json()["figures"]["severity"] == 0.5


def test_what_is_painted_without_a_model_has_a_table(desk, client, tmp_path):
    base = drop(client, tmp_path, 2)
    client.post(f"{base}/classes", json={"names": ["background", "leaf", "spot"]})
    shown = client.get(base).json()
    assert (shown["downloads"], shown["photographs"][0]["figures"]) == ([], {})
    address = f"{base}/photographs/{shown['photographs'][1]['id']}"
    save(client, address, rows=48, index=1)
    save(client, address, rows=12, index=2)
    assert client.get(base).json()["downloads"] == ["results.csv"]
    [line] = download(client, base)
    assert line["file"].endswith("leaf1.png")
    assert (line["width"], line["height"], line["corrected"]) == ("64", "48", "yes")
    assert float(line["severity"]) == pytest.approx(1)
    assert line["pixels_spot"] == str(12 * 64)


def test_a_painted_leaf_has_no_severity(desk, client, tmp_path):
    base = drop(client, tmp_path, 1)
    client.post(f"{base}/classes", json={"names": ["background", "leaf"]})
    address = f"{base}/photographs/{client.get(base).json()['photographs'][0]['id']}"
    save(client, address, rows=12)
    figures = client.get(address).json()["figures"]
    assert figures["pixels_leaf"] == 12 * 64
    assert "severity" not in figures
    assert "severity" not in download(client, base)[0]
