#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Runs in the build directory, after the patches and before make.
set -e
grep -q '"no"' one/one.c && { echo "pre-build.sh: the patches are not applied yet" >&2; exit 1; }
echo "#define GENERATED_FOR \"$1\"" > generated.h
