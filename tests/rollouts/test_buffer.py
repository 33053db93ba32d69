import pytest
from torch.utils.data import DataLoader

from appo.rollouts import RolloutBuffer


def test_an_iterator_that_opens_before_the_buffer_is_filled_reads_what_came_later():
    buffer: RolloutBuffer[int] = RolloutBuffer(2)
    batches = iter(DataLoader(buffer, batch_size=None))
    buffer.fill([1, 2])
    assert list(batches) == [1, 2]


def test_batches_are_made_no_earlier_than_they_are_drawn():
    made = []
    buffer: RolloutBuffer[int] = RolloutBuffer(3)
    buffer.fill(made.append(i) or i for i in range(3))
    batches = iter(DataLoader(buffer, batch_size=None))
    assert made == []
    assert next(batches) == 0
    assert made == [0]


def test_the_source_has_ended_when_its_last_batch_is_drawn():
    ended = []

    def source():
        yield 1
        yield 2
        ended.append(True)

    buffer: RolloutBuffer[int] = RolloutBuffer(2)
    buffer.fill(source())
    batches = iter(buffer)
    next(batches)
    assert ended == []
    next(batches)
    assert ended == [True]


def test_a_source_may_be_shorter_than_the_buffer_and_is_run_to_its_end_too():
    ended = []

    def source():
        yield 1
        ended.append(True)

    buffer: RolloutBuffer[int] = RolloutBuffer(3)
    buffer.fill(source(), num_drawn=1)
    assert next(iter(buffer)) == 1
    assert ended == [True]
    with pytest.raises(ValueError, match=r"num_drawn must lie in 1 .. 3, got 4"):
        buffer.fill([1], num_drawn=4)


def test_an_epoch_cannot_train_on_nothing():
    with pytest.raises(RuntimeError, match="read before it was filled"):
        next(iter(RolloutBuffer(1)))


def test_rollouts_are_trained_once():
    buffer: RolloutBuffer[int] = RolloutBuffer(1)
    buffer.fill([1])
    assert list(buffer) == [1]
    with pytest.raises(RuntimeError, match="read before it was filled"):
        list(buffer)


@pytest.mark.parametrize(("batches", "got"), [([1], "got 1"), ([1, 2, 3], "got more")])
def test_a_wrong_number_of_batches_is_refused(batches, got):
    buffer: RolloutBuffer[int] = RolloutBuffer(2)
    buffer.fill(batches)
    with pytest.raises(RuntimeError, match=f"must hold 2 batches, {got}"):
        list(buffer)
