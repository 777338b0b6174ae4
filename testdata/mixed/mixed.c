// SPDX-License-Identifier: GPL-2.0
#include <linux/init.h>
#include <linux/module.h>
#include <linux/string.h>

static int __init mixed_init(void)
{
	char name[8];

	strlcpy(name, THIS_MODULE->name, sizeof(name));
	pr_info("%s: loaded\n", name);
	return 0;
}

static void __exit mixed_exit(void)
{
}

module_init(mixed_init);
module_exit(mixed_exit);
MODULE_DESCRIPTION("Uses a function that Linux 6.8 removed");
MODULE_LICENSE("GPL");
