// SPDX-License-Identifier: GPL-2.0
#include <linux/init.h>
#include <linux/module.h>
#include "generated.h"

static int __init two_init(void)
{
	pr_info("two: made for " GENERATED_FOR "\n");
	return 0;
}

static void __exit two_exit(void)
{
}

module_init(two_init);
module_exit(two_exit);
MODULE_DESCRIPTION("Module two of two");
MODULE_LICENSE("GPL");
MODULE_INFO(made, MADE);
MODULE_INFO(generated_for, GENERATED_FOR);
MODULE_INFO(patched, "no");
