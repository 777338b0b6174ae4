// SPDX-License-Identifier: GPL-2.0
#include <linux/module.h>
#include "exporter.h"

int exporter_answer(void)
{
	return 42;
}
EXPORT_SYMBOL_GPL(exporter_answer);

MODULE_DESCRIPTION("exports a symbol");
MODULE_LICENSE("GPL");
