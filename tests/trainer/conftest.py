import pytest

from shaped import ScalarTrainer
from tests.models import mlp, mlp_loss


@pytest.fixture(scope="session")
def compiled() -> ScalarTrainer:
    """One compiled trainer that several tests share; those that care reset its parameters."""
    return ScalarTrainer(mlp_loss, mlp(), backend="compiled")
