from ambassador.proxy.breakers import Breakers
from ambassador.proxy.lane import Lane
from ambassador.proxy.lasting import Lasting
from ambassador.proxy.upstream.health import Marks


def test_lasting_has_the_parts_that_it_is_given_and_makes_the_rest() -> None:
    lane = Lane()
    breakers, marks = Breakers(lane), Marks()
    one, another = Lasting(lane, breakers=breakers, marks=marks), Lasting(lane)
    assert (one.breakers, one.marks) == (breakers, marks)
    for part in Lasting.__slots__:
        assert getattr(one, part) is not getattr(another, part)
        assert type(getattr(one, part)) is type(getattr(another, part))
