// SPDX-License-Identifier: GPL-2.0
#include <linux/init.h>
#include <linux/module.h>

static int __init uname_cheat_init(void)
{
	pr_info("uname_cheat: loaded\n");
	return 0;
}

static void __exit uname_cheat_exit(void)
{
}

module_init(uname_cheat_init);
module_exit(uname_cheat_exit);
MODULE_DESCRIPTION("Ends up with the vermagic of no kernel");
MODULE_LICENSE("GPL");
