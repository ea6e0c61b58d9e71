"""Prefect flows over the stages that `dvc.yaml` declares; `make run` calls `python -m flows.pipeline`."""

from flows.environment import set_defaults

set_defaults()  # here, because Prefect reads its settings once, when it is imported
