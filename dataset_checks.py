"""What is wrong with a data set, found before a training run is spoilt by it."""

from tqdm import tqdm

from annotations import MaskReader, Pair, map_files
from errors import UserError
from images import read_image


def check_pairs(pairs: list[Pair], reader: MaskReader, skip_bad: bool = False) -> list[Pair]:
    """Decode every photograph and mask of a split; returns the pairs that can be used.

    Args:
        skip_bad: leave out what cannot be used and print the list, rather than raise.

    Raises:
        UserError: the first problem, or that no pair is left.
    """

    def problem(pair: Pair) -> UserError | None:
        try:
            read_image(pair.image)
            reader.read(pair)
        except UserError as error:
            return error
        return None

    problems = map_files(problem, pairs, "Checking")
    bad = [error for error in problems if error]
    if bad and not skip_bad:
        raise bad[0]
    if bad:
        tqdm.write(f"{len(bad)} of {len(pairs)} pairs are left out:")
        for error in bad:
            tqdm.write(f"  {error}")
    good = [pair for pair, error in zip(pairs, problems, strict=True) if not error]
    if not good:
        raise bad[0] if bad else UserError("There are no pairs; check the data folder.")
    return good
