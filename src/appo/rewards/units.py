"""Units of measure and of money, and numbers in words."""

from __future__ import annotations

from fractions import Fraction

Unit = tuple[Fraction, dict[str, int]]
"""Factor to the base units, and the powers of these."""

_PREFIXES = "1  , 1e3 k kilo, 1e-2 c centi, 1e-3 m milli, 1e-6 µ micro, 1e-9 n nano, 1e6 M mega, 1e9 G giga"
_METRIC = """
length 1 m meter metre
mass 1/1000 g gram gramme
time 1 s second
volume 1/1000 L liter litre
power 1 W watt
energy 1 J joule
force 1 N newton
voltage 1 V volt
current 1 A ampere amp
frequency 1 Hz hertz
pressure 1 Pa pascal
amount 1 mol mole
"""
"""Base unit, factor, symbol, names; each also with the prefixes and in the plural."""
_OTHERS = """
length 0.0254 in inch inches
length 0.3048 ft foot feet
length 0.9144 yd yard yards
length 1609.344 mi mile miles
area 10000 ha hectare hectares
volume 0.001 l
volume 0.000001 ml cc
mass 0.45359237 lb lbs pound pounds
mass 0.028349523125 oz ounce ounces
mass 1000 t tonne tonnes
time 1 sec secs
time 60 min mins minute minutes
time 3600 h hr hrs hour hours
time 86400 day days
time 604800 week weeks
months 1 month months
months 12 year years yr yrs
months 120 decade decades
months 1200 century centuries
speed 1609.344/3600 mph
speed 1000/3600 kph kmh
angle 1 degree degrees deg °
celsius 1 °C
fahrenheit 1 °F
kelvin 1 K kelvin kelvins
percent 1 % percent
dollars 1 $ USD dollar dollars US$
dollars 0.01 ¢ cent cents
euros 1 € EUR euro euros
sterling 1 £ GBP
yen 1 ¥ JPY yen
rupees 1 ₹ INR rupee rupees
bytes 1 B byte bytes
bytes 1000 kB KB
bytes 1000000 MB
bytes 1000000000 GB
people 1 people person persons
times 1 times
"""
_DERIVED = {"volume": {"length": 3}, "area": {"length": 2}, "speed": {"length": 1, "time": -1}}


def _units() -> dict[str, Unit]:
    units: dict[str, Unit] = {}
    for line in _METRIC.strip().splitlines():
        dimension, factor, symbol, *names = line.split()
        powers = _DERIVED.get(dimension, {dimension: 1})
        for prefix in _PREFIXES.split(","):
            scale, letter, word = (*prefix.split(), "", "")[:3]
            spelled = [f"{word}{name}{plural}" for name in names for plural in ("", "s")]
            units |= dict.fromkeys([f"{letter}{symbol}", *spelled], (Fraction(scale) * Fraction(factor), powers))
    for line in _OTHERS.strip().splitlines():
        dimension, factor, *names = line.split()
        top, _, bottom = factor.partition("/")
        powers = _DERIVED.get(dimension, {dimension: 1})
        units |= dict.fromkeys(names, (Fraction(top) / Fraction(bottom or 1), powers))
    return units


UNITS = _units()
SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_BELOW_TWENTY = """
zero one two three four five six seven eight nine ten
eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen
"""
NUMBER_WORDS = {word: number for number, word in enumerate(_BELOW_TWENTY.split())}
NUMBER_WORDS |= {
    word: 10 * number
    for number, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2)  # noqa: SIM905
}
PARTS = {"half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "eighth": 8, "tenth": 10}
PARTS |= {"halves": 2, **{f"{word}s": number for word, number in PARTS.items() if word != "half"}}
_MONTH_NAMES = """
january february march april may june july august september october november december
"""
MONTHS = {name[:n]: number for number, name in enumerate(_MONTH_NAMES.split(), 1) for n in (3, 4, len(name))}
