"""One training loop for every gradient estimator, with checkpoints that resume to the bit."""

from freenergy.training.backprop import Backpropagation, mean_cross_entropy
from freenergy.training.boltzmann import (
    BoltzmannOptions,
    MeanFieldBoltzmannGradient,
    initialize_boltzmann,
)
from freenergy.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from freenergy.training.discriminative import DiscriminativeGradient, DiscriminativeOptions
from freenergy.training.estimators import gradient_estimator
from freenergy.training.options import LoopOptions, TrainingOptions
from freenergy.training.perceptron import (
    PerceptronGradient,
    PerceptronOptions,
    PerceptronTrainer,
    minimize_lbfgs,
)
from freenergy.training.rows import LabelledBatch, LabelledRows, Rows, StreamedRows, as_rows
from freenergy.training.run import RunConfig, RunDirectory, load_model
from freenergy.training.run_folder import RunError, RunFolder
from freenergy.training.stopping import EarlyStopping, EntropyCollapse, StopTraining
from freenergy.training.trainer import DivergenceError, Trainer, initialize
from freenergy.training.vae import (
    VariationalGradient,
    VariationalMonitor,
    VariationalOptions,
    initialize_variational,
)

__all__ = [
    "Backpropagation",
    "BoltzmannOptions",
    "CheckpointError",
    "DiscriminativeGradient",
    "DiscriminativeOptions",
    "DivergenceError",
    "EarlyStopping",
    "EntropyCollapse",
    "LabelledBatch",
    "LabelledRows",
    "LoopOptions",
    "MeanFieldBoltzmannGradient",
    "PerceptronGradient",
    "PerceptronOptions",
    "PerceptronTrainer",
    "Rows",
    "RunConfig",
    "RunDirectory",
    "RunError",
    "RunFolder",
    "StopTraining",
    "StreamedRows",
    "Trainer",
    "TrainingOptions",
    "VariationalGradient",
    "VariationalMonitor",
    "VariationalOptions",
    "as_rows",
    "gradient_estimator",
    "initialize",
    "initialize_boltzmann",
    "initialize_variational",
    "load_checkpoint",
    "load_model",
    "mean_cross_entropy",
    "minimize_lbfgs",
    "save_checkpoint",
]
