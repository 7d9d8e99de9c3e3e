"""One of the processes that train together, as torch's launcher starts it: `… member FOLDER PARENT`.

The first of them, and no other, reports to Dagster, through Pipes: `{"log": …}` whenever fine-tuning calls `on_log`,
and `{"result": …}` in the end.
"""

import os
import sys
from pathlib import Path
from typing import Any

from dagster_pipes import open_dagster_pipes

from ivr_dagster.core.training.launched import LaunchFolder, result_as_json
from ivr_dagster.core.training.sft import OutOfMemory, SftResult, Training, TrainingDiverged, fine_tune
from ivr_dagster.errors import InputError
from ivr_dagster.storage.allocator import keep_freed_memory
from ivr_dagster.storage.parent import end_with


def train(training: Training, **reported: Any) -> SftResult:
    """This process's part of it."""
    if training.device == "cpu":
        keep_freed_memory()
    return fine_tune(training, **reported)


def main() -> int:
    """The command."""
    folder, process = LaunchFolder(Path(sys.argv[1])), int(os.environ["RANK"])
    end_with(int(sys.argv[2]))
    request = folder.read()
    if request is None:  # whoever asked for it is gone
        return 1
    try:
        if process == 0:
            with open_dagster_pipes() as pipes:
                result = train(request.training, on_log=lambda entry: pipes.report_custom_message({"log": entry}))
                pipes.report_custom_message({"result": result_as_json(result)})
        else:
            train(request.training)
    except (InputError, TrainingDiverged, OutOfMemory) as error:
        folder.tell(process, error)
        return 1
    except Exception as error:
        folder.tell(process, error)
        raise
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
