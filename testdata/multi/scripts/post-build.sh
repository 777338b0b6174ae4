#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Runs in the build directory, after the modules were made.
set -e
test -e one/one.ko && test -e two/two.ko
echo "post-build.sh: two modules"
