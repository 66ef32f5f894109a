"""Pairs of final answers and how they compare, by hand: ``==`` the same, ``!=`` different, ``??`` not for the core to say."""

import itertools
import random
import re

import pytest

from forethought.verifiers.exact import compare, key

PAIRS = r"""
integers
18                          ==  18.
18                          ==  +18
18                          ==  018
025                         ==  25
204                         ==  \text{204}
-7                          ==  −7
-7                          !=  7
18                          !=  81
0                           ==  -0
27.0                        ==  27
1,000                       ==  1000
1,000,000                   ==  10^6
10{,}000                    ==  10000
10,\!080                    ==  10080
10\,080                     ==  10,080
11,\! 111,\! 111,\! 100     ==  11111111100
400 000                     ==  400000
58,500                      !=  58,400
58,500                      !=  58.5
4!                          ==  24
\binom{5}{2}                ==  10
2^{10}                      ==  1024
(-2)^3                      ==  -8
-2^2                        ==  -4
2 \cdot 3^2                 ==  18
2 \times 10^{3}             ==  2000
3(4)                        ==  12
5^2 - 1                     ==  24

fractions and decimals
\frac{14}{3}                ==  14/3
\frac{14}{3}                ==  \dfrac{28}{6}
\frac43                     ==  \tfrac{4}{3}
\frac 59                    ==  5/9
\frac9{19}                  ==  9/19
-\frac{35}{9}               ==  \frac{-35}{9}
-\frac{35}{9}               ==  \frac{35}{-9}
-\frac{35}{9}               !=  \frac{35}{9}
\frac{1}{2}                 ==  0.5
\frac{1}{2}                 ==  .50
\frac{1}{3}                 !=  0.333
\frac{1}{3}                 ==  0.\overline{3}
\frac{1}{6}                 ==  0.1\overline{6}
1.25                        ==  \frac{5}{4}
1\frac{4}{5}                ==  \frac{9}{5}
1\frac{4}{5}                ==  1.8
1\frac{4}{5}                !=  \frac{4}{5}
137 \frac{1}{2}             ==  137.5
2 1/2                       ==  5/2
-1\frac12                   ==  -1.5
.0000672                    ==  6.72 \times 10^{-5}
.0000672                    ==  6.72e-5
0.00000001                  !=  0.00000002
3.21                        !=  3.12
\frac{3}{4}                 !=  \frac{4}{3}
\frac{0}{5}                 ==  0
\frac{\frac{1}{2}}{3}       ==  1/6
½                           ==  0.5

units, currency, percent, degrees
5                           ==  5 cm
5                           ==  5\text{ cm}
5                           ==  5\ \mathrm{cm}
15\mbox{ cm}^2              ==  15
15\mbox{ cm}^2              ==  15 \text{ square centimeters}
864 \mbox{ inches}^2        ==  864 in^2
5 \text{ cm}                ??  5 \text{ m}
3 \text{ ft}                ??  36
5 \text{ cm}                !=  7 \text{ cm}
5                           !=  7 \text{ cm}
\$32,\!348                  ==  32348
\$18.90                     ==  18.9
\$36                        ==  36 dollars
\$36                        ==  $36$
\$36                        !=  \$63
5.4 \text{ cents}           ==  5.4
12 apples                   ==  12
90^\circ                    ==  90
90^\circ                    ==  90°
90^\circ                    ==  90 degrees
\frac{270}7\text{ degrees}  ==  \frac{270}{7}
180^\circ                   ??  \pi
90^\circ                    !=  60^{\circ}
10\%                        ==  10
10\%                        ==  10 percent
10\%                        ??  0.1
10                          !=  0.1
12.5\%                      ==  12\frac{1}{2}\%
5                           ??  5 m
5 million                   ??  5

words that are no unit
5                           ??  5 squared
0.012                       ??  12\text{ thousandths}
5                           ??  5 times three
5                           ??  5 percent of
5                           ??  5 dozen
5                           ??  5 or more
5                           ??  5 because it is
5                           ??  5 minus two
5                           ??  5 halves
5                           ??  5 and a half
5                           ??  5, which is what we wanted
(1,2)                       ??  (1,2), as desired
5                           ??  5\,\Omega
5                           ??  5 mol
9                           ==  9 square inches
18                          ==  18 dollars per day

two meanings
2e-1                        ??  0.2
0.(3)                       ??  0
1/2\frac13                  ??  3/7
1/2\frac13                  ??  1/6

roots, pi, complex numbers
\sqrt{51}                   ==  51^{1/2}
3\sqrt{13}                  ==  \sqrt{117}
11\sqrt2                    ==  11\sqrt{2}
70 \sqrt{2}                 ==  70√2
\frac{\sqrt{3}}{3}          ==  \frac{1}{\sqrt{3}}
\frac{3\sqrt{3}}{4}         ==  \frac{3}{4}\sqrt{3}
\frac{3\sqrt{3}}{4}         ==  3sqrt(3)/4
11 \sqrt{5} + 11            ==  11(1+\sqrt{5})
1+2\sqrt{3}                 ==  1+\sqrt{12}
1+2\sqrt{3}                 !=  1-2\sqrt{3}
\sqrt{2}+\sqrt{3}           ==  \sqrt{3}+\sqrt{2}
\sqrt{2}+\sqrt{3}           !=  \sqrt{5}
\sqrt{2}\sqrt{3}            ==  \sqrt{6}
\frac{1}{1+\sqrt{2}}        ==  \sqrt{2}-1
\frac{1}{\sqrt2+\sqrt3}     ==  \sqrt3-\sqrt2
\sqrt[3]{16}                ==  2\sqrt[3]{2}
\sqrt[3]{-8}                ==  -2
\sqrt{2}                    !=  1.414
\sqrt{\frac{1}{4}}          ==  \frac12
\sqrt{5+2\sqrt{6}}          ??  \sqrt2+\sqrt3
\pi                         ==  π
288 \pi                     ==  288\pi
18+2\pi                     ==  2(\pi+9)
7\pi                        !=  7
\pi                         !=  3.14159
\frac{20000}{\pi}           ==  20000/\pi
-\frac{\pi}{6}              ==  -\pi/6
6 - 5i                      ==  -5i+6
6 - 5i                      !=  6+5i
(1+i)^2                     ==  2i
\frac{1}{i}                 ==  -i
\sqrt{-4}                   ==  2i

expressions
p - q                       ==  -q+p
p - q                       !=  q - p
2k+2                        ==  2(k+1)
2k+2                        ??  2n+2
(a+5)(b+2)                  ==  ab+2a+5b+10
(a+5)(b+2)                  !=  ab+2a+5b
x^3+3x-6                    ==  3x - 6 + x^3
6r^2-4r-24                  ==  2(3r^2 - 2r - 12)
\frac{11+9a}{20}            ==  \frac{9a}{20}+\frac{11}{20}
(x+1)^2                     ==  x^2+2x+1
(x+1)^2                     !=  x^2+1
5r^5                        ==  5 r^{5}
3R^2                        ??  3r^2
\frac{x^2}{x}               ==  x
x^{-1}                      ==  \frac{1}{x}
\frac{1}{x+1}               ==  \frac{2}{2x+2}
\frac{x^2-1}{x-1}           ??  x+1
x_1 + x_2                   ==  x_{2}+x_1
\cot x                      ==  \cot(x)
\cot x                      ??  \tan x
2^x                         ==  2^{x}
e^{2x}                      ??  (e^x)^2
e^x                         ==  \exp(x)
5                           ==  |3+4i|
1/2x                        ??  \frac{1}{2x}
x                           !=  x+1

lists and sets
1,-2                        ==  -2, 1
1,-2                        ==  \{1, -2\}
1,-2                        ==  1 \text{ and } -2
1,-2                        ==  x = 1 or x = -2
1,-2                        !=  1, 2
1,-2                        !=  1
3, 5, 7                     ==  3,5,7
3, 5, 7                     !=  3, 5
3, 5, 7                     !=  3, 5, 7, 9
\{1,2,2\}                   ==  \{1,2\}
1, 1, 2                     ??  1, 2
1 \pm \sqrt{19}             ==  1+\sqrt{19}, 1-\sqrt{19}
1 \pm \sqrt{19}             !=  1+\sqrt{19}
3 \pm 2 \sqrt{2}            ==  3 \mp \sqrt{8}
\{1\pm\sqrt{5},-2\}         ==  -2, 1+\sqrt{5}, 1-\sqrt{5}
\{1\pm\sqrt{5},-2\}         !=  \{1\pm\sqrt{5},2\}
\emptyset                   ==  \{\}
100, 200                    ??  100,200
1,000, 2,000                ==  2000, 1000
x=1, y=2                    ==  y=2, x=1
x=1, y=2                    !=  x=2, y=1
3,5                         ??  3.5

tuples, intervals, unions
(3, \frac{\pi}{2})          ==  \left( 3, \pi/2 \right)
(6,31,-1)                   ==  ( 6, 31, -1 )
(6,31,-1)                   !=  (31,6,-1)
(6,31,-1)                   !=  (6,31)
(100,200)                   ==  (100, 200)
(1,000)                     ??  1000
(-2,1)                      ??  -2, 1
(3,4]                       ==  \left(3, 4\right]
(3,4]                       !=  [3,4)
(3,4]                       !=  (3,4)
(3,4]                       ==  3 < x \le 4
(2,\infty)                  ==  (2, +\infty)
(2,\infty)                  ==  x > 2
(2,\infty)                  !=  [2,\infty)
(2,\infty)                  !=  (-\infty,2)
x \in [-2,7]                ==  [-2,7]
x \in [-2,7]                ==  -2 \leq x \leq 7
(-\infty, 2) \cup (3, \infty)  ==  (3,\infty)\cup(-\infty,2)
(-\infty, 2) \cup (3, \infty)  !=  (-\infty, 2] \cup (3, \infty)
(0,9) \cup (9,36)           !=  (0,36)
(0,2) \cup (1,3)            ==  (0,3)
(0,1) \cup \{1\}            ==  (0,1]
\mathbb{R}                  ==  (-\infty,\infty)
(-\sqrt{3}, \sqrt{3})       ??  [-\sqrt{3}, \sqrt{3}]
((1,2),(3,4))               ==  ((1,2), (3,4))

(-\infty,1)\cup(3,\infty)   ==  x<1 or x>3
(-\infty,1)\cup(3,\infty)   ==  x<1 \text{ or } x>3
(-\infty,1)\cup(3,\infty)   ==  x<1 \lor x>3
(-\infty,1)\cup(3,\infty)   ==  (-\infty,1) or (3,\infty)
(-\infty,1)\cup(3,\infty)   ??  (-\infty,1), (3,\infty)
(-\infty,1)\cup(3,\infty)   !=  x<1 or x>4
(1,3)                       ??  x>1 and x<3

matrices
\begin{pmatrix} -2 \\ -14 \end{pmatrix}        ==  \begin{bmatrix}-2\\-14\end{bmatrix}
\begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix}      ==  \frac{1}{3}\begin{pmatrix} -1 \\ 2 \end{pmatrix}
\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix} ==  -\begin{pmatrix}1&0\\0&1\end{pmatrix}
\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix} !=  \begin{pmatrix}-1&0\\0&1\end{pmatrix}
\begin{pmatrix} 1 \\ 2 \end{pmatrix}           !=  \begin{pmatrix} 1 & 2 \end{pmatrix}
\begin{pmatrix} 1 \\ 2 \end{pmatrix}           ??  (1,2)

equations
x=5                         ==  5
5                           ==  x = 5
x=5                         ==  5 = x
x=5                         !=  x=6
x=5                         ??  y=5
y = 2x + 3                  ==  y=3+2x
y = 2x + 3                  ==  2x+3
y = 2x + 3                  !=  y = 3x + 2
f(x) = x^2                  ==  x^2
x = \frac{1}{2} = 0.5       ==  0.5
5x - 7y + 11z + 4 = 0       ==  -5x + 7y - 11z = 4
5x - 7y + 11z + 4 = 0       !=  5x - 7y + 11z - 4 = 0
x^2+y^2=1                   ==  2x^2+2y^2-2=0
x^2 = 1                     ??  x^4 = 1
xy = 5                      ??  5

words, choices, bases, times
\text{Evelyn}               ==  Evelyn
\text{Evelyn}               ==  \textbf{evelyn}
\text{Evelyn}               !=  \text{Navin}
\text{even}                 !=  odd
\text{east}                 ??  due east
\text{(C)}                  ==  C
\text{(C)}                  ==  (C)
\text{(C)}                  ==  \textbf{(C) } 5
\text{(C)}                  !=  \text{(E)}
\text{ellipse}              ??  5
yes                         ??  true
4210_{5}                    ==  4210_5
4210_{5}                    !=  4210
4210_{5}                    !=  4210_6
4210_{5}                    ??  555
52_8                        !=  25_8
11:30                       ==  11:30
11:30                       !=  11:35
3:4                         ??  6:8
11:30 \text{ a.m.}          ==  11:30

not read
                            ??  5
\int_0^1 x dx               ??  0.5
\frac{1}{0}                 ??  0
0^0                         ??  1
1/2/3                       ??  1/6
5!!                         ??  15
1, 2, ...                   ??  1, 2
2\frac{3}{2}                ??  3
3 \approx 3                 ??  3
(1,2                        ??  (1,2)
"""

ROWS = [match.groups() for line in PAIRS.splitlines() if (match := re.fullmatch(r"(.*?) +(==|!=|\?\?)  (.*)", line)) is not None]
RELATION = {"==": "same", "!=": "different", "??": "unknown"}


def test_the_table_is_read_whole() -> None:
    assert len(ROWS) == sum("  " in line for line in PAIRS.splitlines()) >= 150
    assert {relation for _, relation, _ in ROWS} == set(RELATION)


@pytest.mark.parametrize(("gold", "relation", "answer"), ROWS, ids=[" ".join(row) for row in ROWS])
def test_pairs(gold: str, relation: str, answer: str) -> None:
    for one, other in ((gold, answer), (answer, gold)):
        outcome = compare(one, other)
        assert outcome.relation == RELATION[relation], outcome.reason
    if relation == "==":
        assert key(gold) == key(answer)
    if relation == "!=":
        assert key(gold) != key(answer)


def test_keys_and_relations_agree_over_the_table() -> None:
    """Whatever is compared: the same answers share a key, and answers with one key are never different."""
    texts = sorted({text for gold, _, answer in ROWS for text in (gold, answer)})
    for a, b in random.Random(0).sample(list(itertools.combinations(texts, 2)), 8000):
        relation = compare(a, b).relation
        assert relation == "unknown" or (relation == "same") == (key(a) == key(b)), (a, b)
