"""Finding the final answer in what a model wrote."""

import time

import pytest

from forethought.verifiers.extract import final_answer

FOUND = {
    r"so \boxed{5}": "5",
    r"first \boxed{12}. Wait, no: $\boxed{70}$": "70",
    r"$\boxed{\frac{1}{2}}$": r"\frac{1}{2}",
    r"\boxed{\text{a {nested} one}}": r"\text{a {nested} one}",
    r"\boxed{\{1, 2\}}": r"\{1, 2\}",
    r"\boxed{\left\{ x \right.}": r"\left\{ x \right.",
    r"\boxed {7}": "7",
    r"\boxed 7": "7",
    r"$\boxed x$": "x",
    r"$\boxed \frac{1}{2}$ is it": r"\frac{1}{2}",
    r"\fbox{9}": "9",
    r"\boxed{\boxed{5}}": r"\boxed{5}",
    r"\boxed{3} and then \boxed{": "3",
    r"\boxed{3 and \boxed{5}": "5",
    r"\boxed{}, I mean \boxed{4}, in \boxed{ }": "4",
    r"I put it in \boxed. The answer is 8.": "8",
    "<think>\\boxed{1}</think>\\boxed{2}": "2",
    "<think>a</think> \\boxed{1} <think>b</think> The answer is 3.": "3",
    "thinking \\boxed{1}</think> The final answer is 6": "6",
    "The answer is 18.": "18",
    "The answer is 3.5.": "3.5",
    "The answer is: $\\frac{1}{2}$, as we saw.": r"\frac{1}{2}",
    "The final answer is $x=5$. I hope it is correct.": "x=5",
    "**Final Answer:** 42": "42",
    "**Final answer: 42**": "42",
    "Final Answer: The final answer is $\\sqrt{2}$. I hope it is correct.": r"\sqrt{2}",
    "Answer: (C)": "(C)",
    "the answer is 5. No! The answer is 6.": "6",
    "The answer is Evelyn.": "Evelyn",
    "The answer would be $18": "$18",
    "The answer is \\(7\\).": "7",
    "She makes 18 dollars.\n#### 18": "18",
    "#### 2,125\n": "2,125",
    "The answer is 5.\n#### 6": "6",
    "The answer is 5.\n#### 3. Check": "5",
    "the answer is 5 and we are done": "5",
    "the answer is 5, which is what we wanted.": "5",
    "the answer is 5 and 6": "5 and 6",
    r"$x=\boxed{2}$ or $x=\boxed{-3}$": "2, -3",
    r"\boxed{2}, \boxed{3} and \boxed{4}": "2, 3, 4",
    r"\boxed{2} and \boxed{2}": "2",
    r"\boxed{2} or 3 or \boxed{4}": "2, 3, 4",
    r"$x=\boxed{2}$, $x=\frac{5}{2}$ or $x=\boxed{-4}$": r"2, \frac{5}{2}, -4",
    r"\boxed{2}, 3 of them, and \boxed{4}": "4",
    r"\boxed{1\frac12}, or $\boxed{\frac{3}{2}}$": r"\frac{3}{2}",
    r"\boxed{2} and so, adding, \boxed{3}": "3",
    "\\boxed{5} is wrong. Final Answer: 6": "6",
    "\\boxed{5} is my final answer: done": "5",
    "\\boxed{5}. Final Answer: see above in part 2": "5",
    "\\boxed{5} was wrong.\n**Final Answer:** $x=6$": "x=6",
    r"so \\boxed{5}": "5",
    r"so \\boxed{\\frac{1}{2}}": r"\frac{1}{2}",
    r"\boxed{\begin{pmatrix}1\\a\end{pmatrix}}": r"\begin{pmatrix}1\\a\end{pmatrix}",
    r"\boxed{５}": "5",
    "### Final Answer\n\n42": "42",
    "**Final Answer:**\n42": "42",
    "**Final Answer**\n\n$\\frac{1}{2}$": r"\frac{1}{2}",
    "### Final Answer ###\n5": "5",
    "#### Answer\n5": "5",
    "### Answer\n\n**-42**": "-42",
    "**Answer:**\n\n\\[\nx = 5\n\\]\n": "x = 5",
    "### Answer:\n$1,234.50": "$1,234.50",
    "## Answer\n12 apples": "12 apples",
    "The answer is 5.\n### Final Answer\n6": "6",
    "[THINK]\\boxed{1}[/THINK] The answer is 3.": "3",
    "<thinking>\\boxed{1}</thinking>\\boxed{2}": "2",
}
NOTHING = [
    "",
    "I do not know.",
    r"\boxed{3",
    r"\boxed{}",
    r"\boxed",
    "<think>\\boxed{1}",
    "<think>\\boxed{1}</think>",
    "\\boxed{1}</think> so it is 5",
    "the answer is",
    "<thinking>\\boxed{1}",
    "[THINK]\\boxed{1}",
    "#### 3. Check",
    "### Answer\n\n1. We add.\n2. We get 7.",
    "### Answer\n- 5\n- 7",
    "### Answer\nThe total of both is 7.",
    "# Answers\n7",
    "1 + 1 = 2",
]


@pytest.mark.parametrize("text", FOUND)
def test_found(text: str) -> None:
    assert final_answer(text) == FOUND[text]
    assert final_answer(text, guess=True) == FOUND[text]


@pytest.mark.parametrize("text", NOTHING)
def test_nothing_is_none(text: str) -> None:
    assert final_answer(text) is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so $x = 3$ and thus $y = 4$, done", "y = 4"),
        ("it is \\(4\\) or \\[5\\]", "5"),
        ("there are 3 cats and 1,250 dogs", "1,250"),
        ("it drops to -3.5 degrees", "-3.5"),
        ("a share of 3/4", "3/4"),
        ("cost is 18.", "18"),
        ("it weighs 3.5kg", "3.5"),
        ("from $10 for Ann and $6 for Ben, so 16", "16"),
        ("2 * 9 = $<<2*9=18>>18 per day", "18"),
        ("no numbers here", None),
    ],
)
def test_a_guess_is_made_when_asked_for(text: str, answer: str | None) -> None:
    assert final_answer(text) is None
    assert final_answer(text, guess=True) == answer


@pytest.mark.parametrize(
    "piece",
    [
        *(r"\boxed{", r"\boxed", "{", "}", r"\boxed{1}", "answer ", "final ", "the answer is ", "\n", " ", "#", "####"),
        *("### answer\n", "*answer:\n\n"),
        *("$", "$$", "\\(", "\\[", "7", "7,", "\\", "</think>", "<think>", "*", "-"),
    ],
)
@pytest.mark.parametrize("guess", [False, True])
def test_long_texts_take_linear_time(piece: str, guess: bool) -> None:
    text = piece * (10**6 // len(piece))
    start = time.perf_counter()
    answer = final_answer(text, guess=guess)
    assert answer is None or len(answer) <= 100_000
    assert time.perf_counter() - start < 10  # a bound for safety: quadratic would be hours
