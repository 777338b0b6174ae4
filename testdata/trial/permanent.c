// SPDX-License-Identifier: GPL-2.0
#include <linux/init.h>
#include <linux/module.h>

static int __init permanent_init(void)
{
	return 0;
}

module_init(permanent_init);
MODULE_DESCRIPTION("Has no exit function: the kernel never unloads it");
MODULE_LICENSE("GPL");
