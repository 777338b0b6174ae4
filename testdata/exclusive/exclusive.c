// SPDX-License-Identifier: GPL-2.0
#include <linux/init.h>
#include <linux/module.h>

static int __init exclusive_init(void)
{
	pr_info("exclusive: loaded\n");
	return 0;
}

static void __exit exclusive_exit(void)
{
}

module_init(exclusive_init);
module_exit(exclusive_exit);
MODULE_DESCRIPTION("Is for few kernels");
MODULE_LICENSE("GPL");
