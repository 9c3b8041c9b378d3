#!/bin/sh
# Installs the kit that it lies in: checks every file, makes venv/ with the runtime, builds an engine for this
# machine's GPU, and holds it to the bundle's gates. Stops at the first thing that fails. May be run again.
#
# PYTHON names another Python than python3. pip takes its own settings: PIP_INDEX_URL, or PIP_NO_INDEX=1 with
# PIP_FIND_LINKS for a machine without a network.
set -eu

target=@TARGET@
extras=@EXTRAS@
backend=@BACKEND@
# The one version that the engines in bundle/engines run with; empty where any will do.
pinned=@PINNED@
python=${PYTHON:-python3}

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

cd -- "$(dirname -- "$0")"
here=$(pwd)

sha256sum --quiet --strict -c SHA256SUMS ||
    fail "files of the kit are missing or were changed: copy it again from where it was made"

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    fail "$python is older than 3.10, or is no Python: set PYTHON to another"

if [ "$target" = jetson ]; then
    # TensorRT and its Python module are JetPack's: a virtual environment has to see them.
    "$python" -c 'import tensorrt' ||
        fail "$python does not find JetPack's tensorrt: sudo apt install python3-libnvinfer"
    "$python" -m venv --clear --system-site-packages venv
else
    "$python" -m venv --clear venv
fi

for wheel in calipso-*.whl; do
    venv/bin/python -m pip install "./${wheel}[${extras}]" ${pinned:+"$pinned"}
done
venv/bin/calipso doctor

# An engine that came along is kept if it runs here and answers right.
if [ -d bundle/engines ] && venv/bin/calipso check bundle --backend "$backend"; then
    echo "the engine in bundle/engines is used"
else
    ./build.sh
    venv/bin/calipso check bundle --backend "$backend"
fi

# In a unit % and $ are doubled; & | and \ are special to sed.
path=$(printf '%s' "$here" | sed -e 's/[%$]/&&/g' -e 's/[&|\\]/\\&/g')
sed -e "s|@KIT@|$path|" -e "s|@USER@|$(id -un)|" calipso-benchmark.service.in >calipso-benchmark.service

echo "done: $here/venv/bin/calipso classify $here/bundle PICTURES --backend $backend"
echo "to check and time the engine at every boot:"
echo "  sudo cp $here/calipso-benchmark.service /etc/systemd/system/"
echo "  sudo systemctl enable calipso-benchmark.service"
