#!/bin/sh
# Unpack a CPython of Debian's testing suite, with its headers, into a folder:
#
#     buildtools/debian_python.sh 3.14 build/python3.14
#     build/python3.14/usr/bin/python3.14 --version
#
# Use this on a Debian machine whose own suite lacks that version. apt gets a separate state, and nothing else
# on the machine changes. The interpreter needs the suite's newer C library, which is unpacked beside it.
# patchelf writes the path of that library into the binary, so the folder cannot be moved.
set -eu
version=$1 folder=$2
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' 2> /dev/null | head -n 1)
if [ -z "$mirror" ] || [ ! -f $keyring ]; then
    echo "python$version is not on PATH, and this script can fetch it only on Debian: install it, for example with 'uv python install $version'" >&2
    exit 1
fi
rm -rf "$folder" "$folder.apt"
mkdir -p "$folder.apt/lists/partial" "$folder.apt/archives/partial"
folder=$(realpath -m "$folder") apt=$(realpath "$folder.apt")
echo "deb [signed-by=$keyring] $mirror testing main" > "$apt/sources.list"
: > "$apt/status"
cat > "$apt/apt.conf" << EOF
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "-";
Dir::State::lists "$apt/lists";
Dir::State::status "$apt/status";
Dir::State::extended_states "$apt/extended_states";
Dir::Cache "$apt";
Dir::Cache::archives "$apt/archives";
Dir::Log "$apt";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
APT::Sandbox::User "";
EOF
export APT_CONFIG="$apt/apt.conf"
apt-get update -qq
# With an empty status, apt downloads all dependencies, including the C library.
apt-get install -qq --download-only --no-install-recommends "python$version" "libpython$version-dev" libstdc++6 > "$apt/install.log"
mkdir "$folder"
for package in "$apt"/archives/*.deb; do
    dpkg-deb --fsys-tarfile "$package" | tar -x -C "$folder" --exclude './usr/share/doc/*'
done
libraries=$(dirname "$(find "$folder/usr/lib" -name libc.so.6)")
loader=$(find "$libraries" -maxdepth 1 -name 'ld-linux-*')
# --add-needed: extension modules must not load these libraries from the machine.
patchelf --set-interpreter "$loader" --force-rpath --set-rpath "$libraries" --add-needed libstdc++.so.6 \
    --add-needed libpthread.so.0 --add-needed libdl.so.2 --add-needed librt.so.1 "$folder/usr/bin/python$version"
# Debian's pyconfig.h includes another file by a path below /usr/include, where compilers do not look in this folder.
cp "$folder/usr/include/$(basename "$libraries")/python$version/pyconfig.h" "$folder/usr/include/python$version/pyconfig.h"
rm -rf "$apt"
"$folder/usr/bin/python$version" --version
