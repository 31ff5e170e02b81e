"""Experiments: which of several models answers a request that names the experiment as its model.

The arm depends on the experiment, the tenant and the caller's key alone. So every front sends equal
keys to the same arm, and keeps nothing in mind.
"""

import hashlib
import math

from shared.settings.experiments import Experiment

# A float holds so many bits of a digest exactly.
_BITS = 53


def arm_for(experiment: Experiment, tenant: str, key: str) -> str:
    """Return the arm for a key of a tenant.

    This is weighted rendezvous hashing: each arm draws a waiting time from the exponential
    distribution with its weight as the rate, and the shortest wins (Efraimidis and Spirakis, 2006).
    A key's draws do not depend on the weights. So an arm whose weight grows takes keys of the
    others, and no other key moves; the same holds for arms that come or go.
    """

    def waiting_time(model: str, weight: float) -> float:
        text = "\0".join((experiment.name, model, tenant, key))
        digest = hashlib.sha256(text.encode()).digest()
        number = int.from_bytes(digest[:8]) >> (64 - _BITS)
        # Above 0, at most 1.
        uniform = (number + 1) / 2**_BITS
        return -math.log(uniform) / weight

    times = {arm.model: waiting_time(arm.model, arm.weight) for arm in experiment.arms}
    # Of equal times the first name wins, whatever the order of the arms.
    return min(sorted(times), key=times.__getitem__)
