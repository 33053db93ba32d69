"""What estimators get that read the batch alone."""

import torch

from appo.core.context import BatchContext

NO_CONTEXT = BatchContext(torch.Generator())
