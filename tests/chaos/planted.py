"""A reciting worker with one of its protections taken out, to see that the suite notices.

python tests/chaos/planted.py fence|step-key|owner --model demo …

The protections overlap on purpose: a zombie is stopped by the step key before anybody looks at its
epochs. So each plant takes one of them out wherever it is applied, in the scripts that this worker
loads; the other two stay.
"""

import hashlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from reciting_worker import main

from pagestream.producer import lua

Edits = tuple[tuple[str, str], ...]

# The lease of (id, epoch) in step.lua: whoever asks has it.
_NO_LEASE_CHECK: Edits = (
    ("if found.epoch == epoch then return found end\n    return nil, 'f'", "return found"),
    (
        "if job.state ~= 'running' or job.owner ~= worker or job.epoch ~= epoch then "
        "return nil, 'f' end",
        "",
    ),
)

PLANTS: dict[str, dict[str, Edits]] = {
    # Entry ids and epochs: tokens are appended to whatever is there, by whoever was taken for dead.
    "fence": {
        "step": (
            *_NO_LEASE_CHECK,
            ("if not held or held.epoch ~= row[2] then", "if not held then"),
            (
                "local reply = xadd('XADD', replies .. id, 'NOMKSTREAM', row[3],",
                "local tail_epoch, tail_offset = last_entry(id)\n"
                "  local tail = tail_epoch .. '-' .. (tail_offset + 1)\n"
                "  local reply = xadd('XADD', replies .. id, 'NOMKSTREAM', tail,",
            ),
        ),
        "reap": (("prefix .. 'running:' .. worker, prefix .. 'step:' .. worker, ", ""),),
    },
    # The number of the step: every step is the next one.
    "step-key": {
        "step": (
            ("if last_step == incarnation .. ':' .. digits(step) then", "if false then"),
            (
                "elseif last_step ~= incarnation .. ':' .. digits(step - 1) then",
                "elseif false then",
            ),
        ),
    },
    # Whose job it is: everybody's.
    "owner": {
        "step": _NO_LEASE_CHECK,
        "resync": (
            (
                "job and job.state == 'running' and job.owner == worker and job.epoch == row[2]",
                "job ~= nil",
            ),
        ),
    },
}


def plant(name: str) -> None:
    """Alter the scripts that this process will load."""
    load = lua.Script.__init__

    def altered(self: lua.Script, script: str) -> None:
        load(self, script)
        for old, new in PLANTS[name].get(script, ()):
            assert self.text.count(old) == 1, f"{script}.lua no longer has: {old}"
            self.text = self.text.replace(old, new)
        self.sha = hashlib.sha1(self.text.encode()).hexdigest()

    lua.Script.__init__ = altered


if __name__ == "__main__":
    plant(sys.argv.pop(1))
    sys.exit(main())
