"""Work in a forked process, which may be killed or limited without harm to the tests."""

import os


def in_child(work):
    """Runs ``work()`` in a forked process; its id."""
    pid = os.fork()
    if pid == 0:
        status = 4
        try:
            status = work() or 0
        except OSError:
            status = 3
        finally:
            os._exit(status)
    return pid


def wait(pid):
    """The exit status of a child: 3 after an OSError, -9 after kill -9."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
