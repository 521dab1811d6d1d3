"""lm-evaluation-harness: `local-completions` over a task of this file.

Each log-likelihood has to equal the one that follows from `bitnet-run logits`, bit for bit, and each text the one of `bitnet-run`.
"""

import json
import os
import subprocess
import tempfile
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false",
                  OPENAI_API_KEY="none")

import lm_eval  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window  # noqa: E402

from likelihood import log_probabilities, read_logits  # noqa: E402
from server import DEMO, QUESTION, Server, program, run  # noqa: E402

# the choices end where the model ends its text, so that the token behind them is the one that ends a text
QUESTIONS = [
    {"question": f"<|user|>{QUESTION}<|end|><|assistant|>", "choices": ["The map is pink.", "The map is black."], "answer": 0},
    {"question": "<|user|>Add 34 and 28.<|end|><|assistant|>", "choices": ["62", " so 62", "4+8=12"], "answer": 1},
    {"question": "<|user|>Anna has a red ring. Who has the ring?<|end|><|assistant|>", "choices": ["Anna", "Clara"], "answer": 0},
    {"question": "One two", "choices": [" three", " é"], "answer": 0},
]
# tokens of a window, of which the harness keeps two for itself
MAX_LENGTH = 256
TEXTS = ["Mia has a pink map.", "One two three four five six seven eight nine ten. " * 20]

CHOICE = """task: choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1}}
"""
ROLLING = """task: rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}}]
metadata: {{version: 1}}
"""
UNTIL = """task: until
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
generation_kwargs: {{until: ["."], max_gen_toks: 12}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1}}
"""


def write_tasks(home):
    for name, task, rows in (("choices", CHOICE, QUESTIONS), ("rolling", ROLLING, [{"text": text} for text in TEXTS]),
                             ("until", UNTIL, QUESTIONS)):
        data = home / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (home / f"{name}.yaml").write_text(task.format(data=data))


def expected(home, pairs):
    """The sums of log-probabilities of continuations, and whether each is the likeliest: pairs of context and continuation tokens."""
    prompts = {str(number): {"text": "", "ids": context + rest} for number, (context, rest) in enumerate(pairs)}
    (home / "prompts.json").write_text(json.dumps(prompts))
    path = home / "logits.safetensors"
    path.unlink(missing_ok=True)
    subprocess.run([program(), "logits", DEMO, "--prompts", home / "prompts.json", "-o", path], check=True, capture_output=True)
    logits = read_logits(path)
    found = []
    for number, (context, rest) in enumerate(pairs):
        rows = [log_probabilities(row) for row in logits[str(number)]]
        own = [rows[len(context) - 1 + at][token] for at, token in enumerate(rest)]
        best = [max(rows[len(context) - 1 + at]) for at in range(len(rest))]
        found.append((sum(own), own == best))
    return found


def check():
    with tempfile.TemporaryDirectory() as directory, Server(DEMO, "--parallel", "8") as server:
        home = Path(directory)
        write_tasks(home)
        results = {}
        for batch, concurrent in ((1, 1), (4, 4)):
            arguments = {"base_url": server.url + "/v1/completions", "model": server.model, "tokenizer_backend": "huggingface",
                         "tokenizer": str(DEMO), "max_length": MAX_LENGTH, "num_concurrent": concurrent, "max_retries": 1}
            results[batch] = lm_eval.simple_evaluate(
                model="local-completions", model_args=arguments, tasks=["choices", "rolling", "until"], batch_size=batch,
                task_manager=TaskManager(include_path=str(home), include_defaults=False), log_samples=True, bootstrap_iters=0,
                cache_requests=False)["samples"]
        assert {name: [s["resps"] for s in samples] for name, samples in results[1].items()} == \
            {name: [s["resps"] for s in samples] for name, samples in results[4].items()}, "answers depend on the batch"
        samples = results[1]

        def tokens(text):
            return server.ask("/tokenize", {"content": text})["tokens"]

        def whole(value):
            """A response of a sample: the harness keeps numbers or their texts."""
            likelihood, greedy = value
            return float(likelihood), str(greedy) == "True"

        pairs, found = [], []
        for sample in samples["choices"]:
            for choice, response in zip(sample["doc"]["choices"], sample["resps"], strict=True):
                context = tokens(sample["doc"]["question"])
                pairs.append((context, tokens(sample["doc"]["question"] + choice)[len(context):]))
                found.append(whole(response[0]))
        want = expected(home, pairs)
        assert found == want, f"\n{found}\n{want}"
        assert any(greedy for _, greedy in found) and not all(greedy for _, greedy in found)
        # the token that ends a text follows some of the continuations: the harness must not lose their last token
        ends = tokens("<|end|>")[0]
        assert any(server.ask("/v1/completions", {"prompt": context + rest, "max_tokens": 1})["choices"][0]["finish_reason"] == "stop"
                   for context, rest in pairs), f"no continuation is followed by token {ends}"
        yield f"{len(pairs)} choices"

        for sample in samples["rolling"]:
            text = tokens(sample["doc"]["text"])
            windows = [make_disjoint_window(window) for window in get_rolling_token_windows(
                token_list=text, prefix_token=ends, max_seq_len=MAX_LENGTH - 2, context_len=1)]
            want = sum(likelihood for likelihood, _ in expected(home, windows))
            (response,) = sample["resps"]
            likelihood = float(response[0] if not isinstance(response[0], (list, tuple)) else response[0][0])
            assert likelihood == want, (likelihood, want)
        yield f"{len(TEXTS)} texts, rolling"

        for sample in samples["until"]:
            want = run(DEMO, "-p", sample["doc"]["question"], "-n", 12, "--stop", ".", "--stop", "<|end|>", "--greedy")["text"]
            assert sample["resps"][0][0] == want, (sample["resps"], want)
        yield "texts until a stop string"
