"""What experiments share: studies of arms and times, claims, tasks, small models, data, plots."""

from attnjax.lab import tasks
from attnjax.lab.arms import Arm, Log, Place, Result, Task, Training, like, slug
from attnjax.lab.claims import (
    Claim,
    Metrics,
    Names,
    Need,
    Quantity,
    above,
    below,
    between,
    least,
    of,
)
from attnjax.lab.cli import choose, positive, run_cli, run_key
from attnjax.lab.data import START, Images, Text, digits, evenly, read_text, windows
from attnjax.lab.errors import UserError
from attnjax.lab.files import results_folder
from attnjax.lab.generate import GREEDY, Sampling, generate
from attnjax.lab.models import (
    Layer,
    Mixer,
    Shape,
    TinyLM,
    TinyViT,
    Whole,
    cross_entropy,
    unedited,
)
from attnjax.lab.plots import COLORS, attention_maps, time_curves
from attnjax.lab.progress import Bars
from attnjax.lab.study import Config, ModelConfig, Study, TextConfig, TimingConfig
from attnjax.lab.timing import Cell, Timing
from attnjax.lab.train import Optimizer, Run, train

__all__ = [
    "COLORS",
    "GREEDY",
    "START",
    "Arm",
    "Bars",
    "Cell",
    "Claim",
    "Config",
    "Images",
    "Layer",
    "Log",
    "Metrics",
    "Names",
    "Mixer",
    "ModelConfig",
    "Need",
    "Optimizer",
    "Place",
    "Quantity",
    "Result",
    "Run",
    "Sampling",
    "Shape",
    "Study",
    "Task",
    "Text",
    "TextConfig",
    "Timing",
    "TimingConfig",
    "TinyLM",
    "TinyViT",
    "Training",
    "UserError",
    "Whole",
    "above",
    "attention_maps",
    "below",
    "between",
    "choose",
    "cross_entropy",
    "digits",
    "evenly",
    "generate",
    "least",
    "like",
    "of",
    "positive",
    "read_text",
    "results_folder",
    "run_cli",
    "run_key",
    "slug",
    "tasks",
    "time_curves",
    "train",
    "unedited",
    "windows",
]
