"""Prefect flows over the stages that `dvc.yaml` declares; `make run` calls `python -m flows.pipeline`."""

from flows.environment import set_defaults
from flows.tracebacks import hide_ours

set_defaults()  # here, because Prefect reads its settings once, when it is imported
hide_ours()  # of a worker's runs, too
