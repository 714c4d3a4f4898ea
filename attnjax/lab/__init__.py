"""What experiments share: data, small models, the training loop, claims, reports and plots."""

from attnjax.lab.claims import Claim, Criterion, Metrics, Verdict, above, below, between
from attnjax.lab.cli import choose, positive, run_cli, run_key
from attnjax.lab.data import START, Images, Text, digits, evenly, read_text, windows
from attnjax.lab.errors import UserError
from attnjax.lab.models import Layer, Mixer, Shape, TinyLM, TinyViT, cross_entropy, unedited
from attnjax.lab.plots import COLORS, attention_maps, bars, loss_curves, time_curves
from attnjax.lab.progress import Bars
from attnjax.lab.report import report, results_folder
from attnjax.lab.train import Optimizer, Run, train

__all__ = [
    "COLORS",
    "START",
    "Bars",
    "Claim",
    "Criterion",
    "Images",
    "Layer",
    "Metrics",
    "Mixer",
    "Optimizer",
    "Run",
    "Shape",
    "Text",
    "TinyLM",
    "TinyViT",
    "UserError",
    "Verdict",
    "above",
    "attention_maps",
    "bars",
    "below",
    "between",
    "choose",
    "cross_entropy",
    "digits",
    "evenly",
    "loss_curves",
    "positive",
    "read_text",
    "report",
    "results_folder",
    "run_cli",
    "run_key",
    "time_curves",
    "train",
    "unedited",
    "windows",
]
