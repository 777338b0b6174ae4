// SPDX-License-Identifier: GPL-2.0
#include <linux/init.h>
#include <linux/module.h>
#include "generated.h"

static int __init one_init(void)
{
	pr_info("one: made for " GENERATED_FOR "\n");
	return 0;
}

static void __exit one_exit(void)
{
}

module_init(one_init);
module_exit(one_exit);
MODULE_DESCRIPTION("Module one of two");
MODULE_LICENSE("GPL");
MODULE_INFO(made, MADE);
MODULE_INFO(generated_for, GENERATED_FOR);
MODULE_INFO(patched, "no");
