"""Settings of a module by the names of their fields, so that tests can override one of them."""

import dataclasses

from mrg.modules.optimizer import OptimizerSettings
from mrg.modules.rl.settings import LossSettings, RewardSettings
from mrg.modules.settings import KLSettings, RolloutSettings

GROUPS = {
    "optimizer": OptimizerSettings, "rollout": RolloutSettings, "kl": KLSettings, "loss": LossSettings,
    "reward": RewardSettings,
}  # fmt: skip


def nested(**settings):
    """Keyword arguments of a module: a field of a group, `temperature` or `kl_coef`, goes into the group."""
    found, groups = {}, {}
    for name, value in settings.items():
        homes = [
            (group, field.name)
            for group, kind in GROUPS.items()
            for field in dataclasses.fields(kind)
            if name in (field.name, f"{group}_{field.name}")
        ]
        if homes:
            ((group, field),) = homes
            groups.setdefault(group, {})[field] = value
        else:
            found[name] = value
    return found | {group: GROUPS[group](**fields) for group, fields in groups.items()}
