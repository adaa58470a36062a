"""Compute the demo model's known answers anew (after training it again): chaos/known_answers.json.

python tests/make_demo_prompts.py
"""

import json
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM

ROOT = Path(__file__).parents[1]
DEMO_MODEL = ROOT / "worker" / "pagestream" / "worker" / "demo_model"
WANTED = 40
TOKENS = 64
MARGIN = 1e-3

FUNCTIONS = {
    "fibonacci(n)": "Return the n-th Fibonacci number.",
    "factorial(n)": "Return n! for a non-negative integer.",
    "gcd(a, b)": "Return the greatest common divisor of a and b.",
    "is_prime(number)": "Return True if number is a prime.",
    "reverse(text)": "Return the text with its characters in reverse order.",
    "read_lines(path)": "Yield the lines of a file without their line ends.",
    "write_json(path, value)": "Write value to a file as JSON.",
    "flatten(items)": "Yield the items of nested lists, depth first.",
    "chunks(sequence, size)": "Yield successive parts of sequence, each of the given size.",
    "merge(left, right)": "Merge two sorted lists into one sorted list.",
    "binary_search(items, wanted)": "Return the index of wanted in the sorted items, or -1.",
    "count_words(text)": "Return a dictionary of each word and how often it occurs.",
    "mean(values)": "Return the arithmetic mean of the values.",
    "clamp(value, low, high)": "Return value, but not less than low and not more than high.",
    "parse_header(line)": "Parse a header line and return its name and value.",
    "split_path(path)": "Split a path into a head and a tail.",
    "close(self)": "Close the connection.",
    "__repr__(self)": "Return a string representation of the object.",
    "__len__(self)": "Return the number of items.",
    "__enter__(self)": "Enter the context and return self.",
    "__exit__(self, exc_type, exc, tb)": "Leave the context and close the file.",
    "get(self, key, default=None)": "Return the value for key, or default.",
    "pop(self, index=-1)": "Remove and return the item at index.",
    "append(self, item)": "Add an item to the end of the list.",
    "connect(host, port, timeout=None)": "Open a connection to host and port.",
    "send(self, data)": "Send data to the socket.",
    "main(argv=None)": "Run the command line program.",
    "usage(code, msg='')": "Print a usage message and exit.",
    "walk(tree)": "Walk over all nodes of the tree.",
    "copy_file(source, target)": "Copy a file from source to target.",
    "is_empty(self)": "Return True if the queue is empty, False otherwise.",
    "wait(self, timeout=None)": "Wait until the event is set or the timeout passes.",
    "encode(self, input, errors='strict')": "Encode the input and return bytes.",
    "normalize(name)": "Normalize a name: lower case, no blanks.",
    "compare(a, b)": "Compare two values and return True if they are equal.",
    "load(fp)": "Load an object from a file.",
    "format_time(seconds)": "Return a string such as '1:02:03' for a number of seconds.",
    "unique(items)": "Return the items without repetitions, in order.",
    "transpose(matrix)": "Return the matrix with rows and columns exchanged.",
    "greet(name)": "Return a greeting: 'Grüße, name' – „höflich“.",
}
FRAGMENTS = [
    "import",
    "import os\nimport sys\nimport",
    "#!/usr/bin/env python3\n",
    "class Node:\n    def __init__(self, value):",
    "class Stack(list):\n    '''A last-in, first-out list.'''",
    "class Error(Exception):",
    "try:\n    import ssl\nexcept ImportError:",
    "for line in open(path):",
    "if __name__ == '__main__':",
    "while True:\n    try:",
    "with open(filename, 'rb') as f:",
    "    def setUp(self):",
    "        if not isinstance(other, type(self)):",
    "return [x for x in",
    "_NAMES = {'één': 1, '二': 2, '🐍': 3}\n",
    "import unittest\n\n\nclass TestQueue(unittest.TestCase):\n    def test_empty(self):",
    "from collections import namedtuple\n\nPoint = namedtuple('Point', 'x y')\n\n\ndef far(a):",
    "# Sort the files by size and print the ten largest.",
    '"""Tools for working with dates and times."""',
    "raise ValueError(",
]


def prompts() -> list[str]:
    """Give the candidates, a long one and then functions and fragments in turn."""
    functions = [f'def {name}:\n    """{doc}"""' for name, doc in FUNCTIONS.items()]
    long = "\n\n\n".join(f"{f}\n    raise NotImplementedError" for f in functions[:9])
    mixed = [text for pair in zip(functions, FRAGMENTS, strict=False) for text in pair]
    return [f"{long}\n\n\n{functions[9]}", *mixed, *functions[len(FRAGMENTS) :]]


@torch.no_grad()
def main() -> None:
    """Write the first prompts whose answers are certain."""
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    model = LlamaForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32).eval()
    ends = model.generation_config.eos_token_id
    rows = []
    for text in prompts():
        ids = tokenizer(text)["input_ids"]
        sequence = list(ids)
        smallest = float("inf")
        for _ in range(TOKENS):
            top = model(torch.tensor([sequence])).logits[0, -1].topk(2)
            smallest = min(smallest, (top.values[0] - top.values[1]).item())
            sequence.append(int(top.indices[0]))
        if smallest < MARGIN:
            continue
        expected = sequence[len(ids) :]
        end = next((i for i, token in enumerate(expected) if token in ends), None)
        rows.append({"text": text, "prompt_ids": ids, "expected_ids": expected, "end": end})
        if len(rows) == WANTED:
            break
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path = DEMO_MODEL.parent / "chaos" / "known_answers.json"
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    print(f"{len(rows)} prompts, {sum(row['end'] is not None for row in rows)} reach an end token")


if __name__ == "__main__":
    main()
