// SPDX-License-Identifier: GPL-2.0
#include <linux/init.h>
#include <linux/module.h>

static int __init date_init(void)
{
	pr_info("date: built at %s\n", BUILT_AT);
	return 0;
}

static void __exit date_exit(void)
{
}

module_init(date_init);
module_exit(date_exit);
MODULE_DESCRIPTION("Carries the time of its build");
MODULE_LICENSE("GPL");
MODULE_INFO(built_at, BUILT_AT);
