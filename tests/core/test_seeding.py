from appo.core.seeding import derive_seed


def test_seeds_depend_on_every_part_and_its_type():
    parts = [("a", 1), ("a", 2), ("b", 1), ("a", "1"), ("a1",), (1, "a")]
    assert len({derive_seed(*part) for part in parts}) == len(parts)


def test_seeds_are_the_same_on_every_machine():
    assert derive_seed("initial", 0) == derive_seed("initial", 0) == 7086051678483911481
