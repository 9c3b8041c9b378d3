"""The steps of an export, in their order: one verb, one file each."""

from calipso_export.config import ExportConfig
from calipso_export.step import Step
from calipso_export.steps.assess import Assess
from calipso_export.steps.bundle import WriteBundle
from calipso_export.steps.calibrate import Calibrate
from calipso_export.steps.gather import Gather
from calipso_export.steps.keep import Keep
from calipso_export.steps.load import Load
from calipso_export.steps.optimise import Optimise
from calipso_export.steps.probe import Probe
from calipso_export.steps.prompt import EncodePrompts
from calipso_export.steps.settle import Settle
from calipso_export.steps.shots import EncodeShots
from calipso_export.steps.trace import Trace
from calipso_export.steps.tune import Tune
from calipso_export.steps.weigh import WeighViews

STEPS: tuple[Step, ...] = (
    Load(),
    Gather(),
    EncodePrompts(),
    WeighViews(),
    EncodeShots(),
    Tune(),
    Assess(),
    Trace(),
    Optimise(),
    Calibrate(),
    Settle(),
    Keep(),
    WriteBundle(),
)

# Of a bundle that takes any labels: nothing is fitted on classes.
OPEN_STEPS: tuple[Step, ...] = (
    Load(),
    Gather(),
    Probe(),
    Trace(),
    Optimise(),
    Calibrate(),
    Settle(),
    Keep(),
    WriteBundle(),
)


def steps_for(config: ExportConfig) -> tuple[Step, ...]:
    """The steps of this export."""
    return OPEN_STEPS if config.takes_labels else STEPS
