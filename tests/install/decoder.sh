#!/usr/bin/env bash
# The tests of an optional decoder, with the decoder: it is installed here, and a test of it that skips is a failure.
#
#     tests/install/decoder.sh dali|torchcodec [arguments of pytest]    PYTHON names the interpreter (.venv/bin/python)
#
# It goes into an environment of its own on top of the interpreter's (`decoders/` beside its `bin/`): DALI wants an older
# `packaging` than setuptools does. torchcodec needs FFmpeg's shared libraries; PyAV's wheel has them, under names that
# only PyAV looks for.
set -euo pipefail
cd "$(dirname "$0")/../.."
python="$(realpath -s "${PYTHON:-.venv/bin/python}")"
decoder="$1"
shift
layer="$(dirname "$(dirname "$python")")/decoders"

[ -x "$layer/bin/python" ] || "$python" -m venv "$layer"
site="$(echo "$layer"/lib/python3*/site-packages)"
"$python" - > "$site/base.pth" <<'EOP'
import site
print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")
EOP
version="$("$python" - "$decoder" <<'EOP'
import sys, tomllib
print(tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"][sys.argv[1]][0])
EOP
)"
"$layer/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt "$version"

"$python" - "$layer/ffmpeg" <<'EOP'
import re, sys
from pathlib import Path
import av
links = Path(sys.argv[1])
links.mkdir(exist_ok=True)
for library in Path(av.__file__).parents[1].joinpath("av.libs").glob("lib[as][vw]*"):
    if name := re.fullmatch(r"(lib\w+)-\w+(\.so\.\d+)[.\d]*", library.name):
        link = links / "".join(name.groups())
        link.unlink(missing_ok=True)
        link.symlink_to(library)
EOP
export LD_LIBRARY_PATH="$layer/ffmpeg${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" OMP_NUM_THREADS=1
DIFFMAVIL_REQUIRE="$decoder" "$layer/bin/python" -m pytest tests/data/test_decoders.py -k "$decoder or choice" "$@"
