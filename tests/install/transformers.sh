#!/usr/bin/env bash
# Other people's models: the patches for them, and weights from and to them. What skips elsewhere must not skip here.
#
#     tests/install/transformers.sh [arguments of pytest]    PYTHON names the interpreter (.venv/bin/python)
#
# Each generation of transformers goes into an environment of its own on top of the interpreter's (`transformers-4/` and
# `transformers-5/` beside its `bin/`), with timm and what Trainer needs, and without their copies of torch. The wheel of
# transformers has no tests; its source distribution has those that all models share. The newer one gets what other optional
# packages are needed for: graphs, boards, parquet.
set -euo pipefail
cd "$(dirname "$0")/../.."
python="$(realpath -s "${PYTHON:-.venv/bin/python}")"
base="$(dirname "$(dirname "$python")")"

for version in 4.57.6 5.24.0; do
    layer="$base/transformers-${version%%.*}"
    [ -x "$layer/bin/python" ] || "$python" -m venv "$layer"
    site="$(echo "$layer"/lib/python3*/site-packages)"
    "$python" - > "$site/base.pth" <<'EOP'
import site
print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")
EOP
    pip() { "$layer/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }
    pip install -c constraints.txt "transformers==$version" parameterized
    pip install --no-deps accelerate psutil timm==1.0.31
    optional=(tests/model/{test_transformers_files,test_auto,test_hub}.py)
    optional+=(tests/model/test_image_mae.py::test_transformers_vit_mae_is_what_we_make_of_it)
    optional+=(tests/evaluation/test_pretrained.py::test_the_real_package_without_a_network)
    if [ "$version" = 5.24.0 ]; then
        pip install -c constraints.txt onnx onnxscript onnxruntime pyarrow wandb mlflow-skinny sqlalchemy alembic
        optional+=(tests/model/test_graphs.py tests/training/test_boards.py)
        optional+=(tests/evaluation/test_extract.py::test_parquet_holds_the_same)
    fi
    shared="$layer/source"
    if [ ! -d "$shared/transformers-$version/tests" ]; then
        mkdir -p "$shared"
        pip download --no-deps --no-build-isolation --no-binary transformers -d "$shared" "transformers==$version"
        tar -xzf "$shared/transformers-$version.tar.gz" -C "$shared" "transformers-$version/tests"
    fi
    export OMP_NUM_THREADS=1 DIFFMAVIL_REQUIRE=transformers,accelerate,timm.models.vision_transformer
    # The page's example and the patches; then, without our strictness about markers and warnings, their own checks.
    "$layer/bin/python" -m pytest tests/integrations --ignore tests/integrations/test_their_checks.py "$@"
    DIFFMAVIL_TRANSFORMERS_TESTS="$shared/transformers-$version/tests" \
        "$layer/bin/python" -m pytest -q -o addopts= -W ignore tests/integrations/test_their_checks.py "$@"
    # What needs a package and is skipped elsewhere: nothing is, but for what needs a GPU.
    "$layer/bin/python" -m pytest -rs "${optional[@]}" "$@" | tee "$layer/optional.log"
    if grep "^SKIPPED" "$layer/optional.log" | grep -v CUDA; then
        echo "tests were skipped that must run here" >&2
        exit 1
    fi
done
