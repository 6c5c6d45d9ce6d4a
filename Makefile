# make demo: from a clone to segmented pictures.   make test: lint and all tests.
PYTHON ?= python3
VENV := .venv/bin
DEMO := outputs/demo

.PHONY: demo test lint soak results clean help
help:
	@echo "make demo   set up, draw sample leaves, train, segment pictures and a video"
	@echo "make test   set up, lint, run all tests"
	@echo "make soak   the long tests, by hand"
	@echo "make results DATA=ROOT   train the scratch recipe with three seeds and measure it;"
	@echo "                         goes on where it was stopped, RESULTS=FOLDER begins anew"

.venv/.installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv .venv
	$(VENV)/pip install -r requirements.txt
	touch $@

.venv/.installed-dev: .venv/.installed requirements-dev.txt
	$(VENV)/pip install -r requirements-dev.txt
	touch $@

demo: .venv/.installed
	$(VENV)/python tools/sample_data.py --out-dir input/demo --overwrite
	$(VENV)/python train.py --recipe light --data input/demo --imgsz 160 160 --epochs 10 --workers 1 \
	  --out-dir $(DEMO) --overwrite
# Photographs and the video at the same time: each keeps one core busy.
	@$(VENV)/python inference_video.py --input input/demo/sample_video.mp4 --model $(DEMO)/best_model_iou.pth \
	  --out-dir $(DEMO)/inference_results_video & video=$$!; \
	$(VENV)/python inference_image.py --input input/demo/valid_images --model $(DEMO)/best_model_iou.pth \
	  --out-dir $(DEMO)/inference_results_image; pictures=$$?; wait $$video && exit $$pictures
	@echo
	@echo "Done. Look at:"
	@echo "  $(DEMO)/report.html                            how good it is and where it fails"
	@echo "  $(DEMO)/valid_preds/                           photograph, truth, prediction, epoch by epoch"
	@echo "  $(DEMO)/inference_results_image/summary.html   the pictures by severity; overlays and masks beside it"
	@echo "  $(DEMO)/inference_results_video/               the video with its lesions marked"
	@echo "Commands of your own need the environment, once in each terminal: source .venv/bin/activate"

lint: .venv/.installed-dev
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .

test: lint
	$(VENV)/python -m pytest -n 2 --dist worksteal

soak: .venv/.installed-dev
	$(VENV)/python -m pytest -m soak -o faulthandler_timeout=3600
	$(VENV)/python tests/soak/fuzz.py --count 20000
	$(VENV)/python tests/soak/pictures.py --count 2000
	$(VENV)/python tests/soak/training.py --count 2000
	$(VENV)/python tests/soak/kills.py --count 20
	$(VENV)/python tests/soak/large_picture.py
	$(VENV)/python tests/soak/many_pictures.py --count 4000
	$(VENV)/python tests/soak/large_map.py
	$(VENV)/python tests/soak/video.py --count 10
	$(VENV)/python tests/soak/page.py

# The main row of docs/results.md, from the folder of a data set. Seeds that are trained already are
# only measured again: after a change of data, recipe or code, name another folder with RESULTS=.
RESULTS := outputs/results
results: .venv/.installed
	@test -d "$(DATA)" || { echo "Name the data folder: make results DATA=input/coffee_leaf"; exit 2; }
	for seed in 1 2 3; do \
	  run=$(RESULTS)/$$seed; go_on=; if [ -f $$run/last.pth ]; then go_on=--resume; fi; \
	  $(VENV)/python train.py --recipe scratch --data "$(DATA)" --seed $$seed --out-dir $$run \
	    $$go_on || { code=$$?; \
	      if [ ! -f $$run/last.pth ] && ls $$run/*.pth >/dev/null 2>&1; then \
	        echo "No epoch was finished; begin anew after: rm -r $$run"; fi; \
	      exit $$code; }; \
	  $(VENV)/python evaluate.py --model $$run/model.pth --data "$(DATA)" \
	    --out-dir $$run/evaluation || exit; \
	done
	@$(VENV)/python tools/mean_of_seeds.py $(RESULTS)/*/evaluation/metrics.json

clean:
	rm -rf input/demo outputs/demo
