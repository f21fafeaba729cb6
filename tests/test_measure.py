"""What a piece of work cost, held against what its processes say of themselves."""

import subprocess
import sys
import time

from r2q.measure import Measured

BUSY = "import time\nwhile time.process_time() < 0.3: pass\nprint(time.process_time())"


def test_processor_time_is_that_of_this_process_and_of_its_children_and_no_wait() -> None:
    own = time.process_time()
    with Measured() as cost:
        child = float(subprocess.run([sys.executable, "-c", BUSY], capture_output=True, check=True).stdout)
        while time.process_time() < own + 0.2:
            pass
        time.sleep(0.5)
    assert child + 0.2 <= cost.cpu_seconds + 0.01  # the kernel counts in steps
    assert cost.cpu_seconds < cost.seconds - 0.4


def test_memory_of_a_gpu_is_stated_only_where_one_was_used() -> None:
    with Measured() as cost:
        pass
    assert cost.gpu_mib is None
