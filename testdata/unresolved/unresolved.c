// SPDX-License-Identifier: GPL-2.0
#include <linux/init.h>
#include <linux/module.h>
#include <linux/kallsyms.h>

static int __init unresolved_init(void)
{
	pr_info("unresolved: %lx\n", kallsyms_lookup_name("jiffies"));
	return 0;
}

static void __exit unresolved_exit(void)
{
}

module_init(unresolved_init);
module_exit(unresolved_exit);
MODULE_DESCRIPTION("Uses a symbol that is not exported");
MODULE_LICENSE("GPL");
