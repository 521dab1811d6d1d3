#!/usr/bin/env python3
"""Write the table of entries of `modules_to_not_convert` and the modules that they name.

    scripts/module_patterns.py crates/bitnet-checkpoint/src/family/module_patterns/table.json

The answers come from transformers' own should_convert_module.
Needs: pip install transformers==5.24.0 (no torch). Exit status: 0 written, 1 could not.
"""
import importlib.util
import json
import sys
import types
import warnings
from pathlib import Path

MODULES = [f"model.layers.{layer}.{role}"
           for layer in (0, 1, 2, 11)
           for role in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")]
MODULES += ["lm_head", "layers.1.mlp.down_proj", "model.layers.1.mlp.down_proj.norm"]

ENTRIES = [
    # whole names, beginnings, endings
    "model.layers.1.mlp.down_proj", "layers.1.mlp.down_proj", "mlp.down_proj", "down_proj", "proj", "j", "",
    "model.layers.1", "model.layers.1.", "layers.1", "model.layers", "model", "model.", "mod", "mode", "lm_head", "head",
    "mlp", "mlp.gate", "model.layers.0.mlp.gate", "self_attn", "model.layers.1.mlp.down_proj.weight", "weight", "x",
    # regular expressions
    ".*down_proj", "model.layers.*.mlp", r"model\.layers\.\d+\.mlp", r"model\.layers\.1\b", "model.layers.1$", "^model",
    "^model.layers.1", ".*", ".", "..", ".+", ".*.", "model.layers.[02468].mlp.*", "model.layers.[^1]*",
    r".*\.(gate|up)_proj", "(?:model|decoder).layers.1", "layers|model.layers.0", "a|", "|", "|b", "model.layers.(0|1)",
    "model.layers.(?!0).*", "model.layers.(?=1).*", "(?<!x)model.layers.0", r"(?<=\.)layers", r"model(?<=model)",
    "model.layers.1{2}", "model.layers.1{1,2}", "model.layers.1{,2}", "model.layers.1{0}", "model.layers.{1}", "{", "{}",
    "model{", "model.layers.1{a}", "model.layers.1{,}", "m?odel", "m*?odel.layers", "(m|o|d|e|l)*", "((m|o|d|e|l)*)*",
    "(.*)*", "(a*)*model", "(?P<layer>model)", "model(?#a comment).layers", r"\Amodel", r"model\Z", r".*down_proj\Z",
    r"\w+", r"\w+\.\w+", r"\S+", r"\D+", r"\d+", r"\s", r"[\w.]+", r"[\d]", r"[a-z]+", r"[a-z.]+", r"[]m]odel", r"[^]m]",
    r"[a\-z]+", "[-m]odel", "[m-]odel", r"\x6dodel", r"\u006dodel", r"\Bodel", r"\bmodel\b", "model.layers.1a?",
    "MODEL", "model layers", "model\n", "model.layers.0.mlp.(gate|up|down)_proj", "model.layers.0.mlp.(gate|up|down)",
    "model.layers.0.mlp.(gate|up|down).*", "a)|(?:model.layers.0", "a)|(?:x", "model.layers.(0|2).self_attn.(q|k|v)_proj",
    "(?:model.layers.1.)?mlp", ".*layers.1.*", ".*1.*", ".*1", "1", ".*_proj$", "$", "^", "^$", r"model\.layers\.1\.",
    "((((((((((model))))))))))", "model(.layers){1}", "(?:.*){3}", "(?:model.){0}model", "mlp$|model$|model.layers.11",
    # not regular expressions
    "[", "(", ")", "*", "+a", "?", "a**", "a{2,1}", "model.layers.[", r"\q", "(?P<1>a)", "(?<=a*)b", "a{99999999999}",
    "^*", "(?", "[z-a]", "\\", r"\x6", "(?i)model",
]


def should_convert_module():
    """The function, without the rest of the package (which wants torch)."""
    spec = importlib.util.find_spec("transformers")
    path = Path(spec.origin).parent / "quantizers" / "quantizers_utils.py"
    source = path.read_text()
    start = source.index("def should_convert_module")
    end = source.index("\n\n\n", start)
    module = types.ModuleType("extracted")
    exec("import re\n" + source[start:source.rindex("\n", start, end + 1)], module.__dict__)
    return module.should_convert_module


def main():
    convert = should_convert_module()
    warnings.simplefilter("ignore")
    rows = []
    for entry in ENTRIES:
        try:
            named = [i for i, module in enumerate(MODULES) if not convert(module, [entry])]
        except Exception:
            named = None
        rows.append([entry, named])
    table = {"modules": MODULES, "entries": rows}
    text = json.dumps(table["modules"], ensure_ascii=False)
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    Path(sys.argv[1]).write_text(f'{{"modules": {text},\n"entries": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
