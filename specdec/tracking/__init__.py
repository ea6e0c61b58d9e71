"""MLflow, watching: runs, lineage, the registry and its gates. The only package that imports `mlflow`.

Importing this is cheap: `mlflow` itself is loaded when something is recorded.
"""

from specdec.tracking.executions import drafter_run, execution_run, record_finished
from specdec.tracking.owner import EXECUTION, execution_key
from specdec.tracking.runs import DrafterRun
from specdec.tracking.store import Location, locate, project_root

__all__ = [
    "EXECUTION",
    "DrafterRun",
    "Location",
    "drafter_run",
    "execution_key",
    "execution_run",
    "locate",
    "project_root",
    "record_finished",
]
