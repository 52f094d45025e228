"""python -m visaged_training COMMAND ..."""

from __future__ import annotations

import argparse
import importlib
import sys

COMMANDS = {
    "template": "measure the alignment template on FER+ crops",
    "synth": "render (expression, neutral) pairs of parametric heads",
    "faces": "align every face and ask the identity encoder's teacher about it",
    "cosmetics": "render and collect faces with the layers that make-up is painted on",
    "gallery": "collect and render faces for the identity generator",
    "train": "train a network: generator, classifier, joint, tiny, identity, makeup",
    "quantize": "float checkpoint or detector weights -> int8 bundle",
    "evaluate": "measure float and int8 nets by every protocol",
    "report": "write manifest.toml and CARD.md from the measurements",
    "layers": "list the convolutions of a graph, for estimates",
    "engine-graphs": "write the graphs that the int8 engine is tested and timed on",
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="visaged_training", description=__doc__)
    sub = parser.add_subparsers(dest="command", required=True)
    wanted = argv if argv is not None else sys.argv[1:]
    for name, text in COMMANDS.items():
        p = sub.add_parser(name, help=text, description=text)
        # Only the module that is asked for is imported: most commands need no torch.
        if name in wanted[:1]:
            module = importlib.import_module(f".{name.replace('-', '_')}", __package__)
            module.arguments(p)
            p.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
