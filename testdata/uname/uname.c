// SPDX-License-Identifier: GPL-2.0
#include <linux/init.h>
#include <linux/module.h>

static int __init uname_init(void)
{
	pr_info("uname: loaded\n");
	return 0;
}

static void __exit uname_exit(void)
{
}

module_init(uname_init);
module_exit(uname_exit);
MODULE_DESCRIPTION("Its Makefile asks uname which kernel to build for");
MODULE_LICENSE("GPL");
