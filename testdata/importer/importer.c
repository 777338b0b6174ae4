// SPDX-License-Identifier: GPL-2.0
#include <linux/module.h>
#include <exporter.h>

static int __init importer_init(void)
{
	return exporter_answer() == 42 ? 0 : -EINVAL;
}
module_init(importer_init);

static void __exit importer_exit(void)
{
}
module_exit(importer_exit);

MODULE_DESCRIPTION("uses the symbol of another module");
MODULE_LICENSE("GPL");
