"""Where and on what this process runs.

distributed, heartbeat, launch  processes of a job: `ProcessGroup`, whether the others live, how they are started
device, gpus, cpu, cgroups      devices, processors, memory: `resolve_device`, `cpu_count`, `memory_limit`
paddle_import, paddle_build     importing Paddle and its environment: `prepare_paddle`; the installed wheel
opencv, malloc                  the installed OpenCV; freed memory
logs, progress                  log lines on the console and in files; progress bars
process, signals                what a run changes in its process and puts back; the signals that end it
"""

from paddlex_feat.runtime.cpu import cpu_count, memory_limit
from paddlex_feat.runtime.distributed import ProcessGroup
from paddlex_feat.runtime.logs import log_to_console, log_to_file

__all__ = ["ProcessGroup", "cpu_count", "log_to_console", "log_to_file", "memory_limit"]
