"""What people, cities, countries and signs may be called; every word is a name of one kind alone."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST_NAMES = _words("""
    Ana Ben Cleo Dan Eva Finn Gus Hana Ivan Jade Kai Lena Milo
    Nora Omar Pia Quin Rosa Sami Tess Uma Vera Will Xena Yara Zoe
""")

LAST_NAMES = _words("""
    Ruiz Park Okoye Lind Haas Novak Silva Mori Adler Bose Costa Duval Endo Faro Gale Hart Ibsen Joss Klein Lowe
""")

CITIES = _words("""
    Oslo Lima Cairo Quito Riga Turin Delhi Kyoto Accra Perth Minsk Tunis Porto Leeds Davos
    Sofia Hanoi Busan Malmo Bergen
    Osaka Dakar Havana Nantes Lyon Graz Bath Cork Split Varna
""")

COUNTRIES = _words("Arda Borea Caldia Dorne Elvia Ferra Gondal Hyria Ithria Jora")

MORE_FIRST_NAMES = _words("""
    Abel Bela Carl Dora Emil Fay Greta Hugo Ines Jonas Kurt Lars Mina Nils Olga Paul Rita Sven Tara Ugo Viola Wanda
    Yuri Zita
""")

MORE_LAST_NAMES = _words("""
    Amado Baker Cohen Dahl Engel Fuchs Grant Huber Ikeda Jansen Kovac Lopez Meyer Nagy Olsen Perez Quist Roth Sato
    Torres
""")

ANIMALS = _words("""
    ant bat bear bee bison boar bull camel cat cobra cow crab crane crow deer dingo dog dove duck eagle eel elk
    emu finch fly fox frog gecko goat goose gull hare hawk hen heron horse hyena ibis koala lamb lark lemur lion
    llama lynx mole moose moth mouse mule newt otter owl panda perch pig puma quail rat raven
""")
