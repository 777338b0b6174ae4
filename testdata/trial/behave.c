// SPDX-License-Identifier: GPL-2.0
#include <linux/completion.h>
#include <linux/fs.h>
#include <linux/init.h>
#include <linux/kmod.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/mutex.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/string.h>
#include <linux/timer.h>

static char *how = "good";
module_param(how, charp, 0444);
MODULE_PARM_DESC(how, "how to behave; the table in the source has them");

static int number = 7;
module_param(number, int, 0444);

static bool truth;
module_param(truth, bool, 0444);

static int list[4];
static int listed;
module_param_array(list, int, &listed, 0444);

static int good(void)
{
	return 0;
}

static void nothing(void)
{
}

/* Refusals. */

static int nodev(void)
{
	return -ENODEV;
}

static int nxio(void)
{
	return -ENXIO;
}

static int inval(void)
{
	pr_err("behave: this is not valid\n");
	return -EINVAL;
}

/* It asks for a module of the kernel's own that nothing says it needs, and can't do without. */

static int ask(void)
{
	return request_module("crc8") ? -ENOENT : 0;
}

/* Crashes. */

static int *volatile nowhere;

static int crash(void)
{
	*nowhere = 1;
	return 0;
}

static void crash_at_exit(void)
{
	*nowhere = 1;
}

static void strike(struct timer_list *unused)
{
	BUG();
}

static DEFINE_TIMER(timer, strike);

static int bug_timer(void)
{
	mod_timer(&timer, jiffies + HZ / 20);
	return 0;
}

static int die(void)
{
	panic("behave: nothing goes any more");
}

/* Hangs. The locks are held when they are asked for again; nobody completes what is waited for. */

static DEFINE_MUTEX(mutex);

static int mutex_twice(void)
{
	mutex_lock(&mutex);
	mutex_lock(&mutex);
	return 0;
}

static DEFINE_SPINLOCK(spinlock);

static int spin_twice(void)
{
	spin_lock(&spinlock);
	spin_lock(&spinlock);
	return 0;
}

static DECLARE_COMPLETION(never);

static void wait_at_exit(void)
{
	wait_for_completion(&never);
	pr_info("behave: it has completed\n");
}

/* It doesn't unload: the reference on itself is one that it never gives back. */

static int stay(void)
{
	__module_get(THIS_MODULE);
	return 0;
}

/* Warnings. */

static int warn(void)
{
	WARN_ON(1);
	return 0;
}

/* An object of a cache is left when the cache is destroyed, at the end. With a constructor it's a cache of its own. */

static struct kmem_cache *cache;

static void make(void *unused)
{
}

static int leak(void)
{
	cache = kmem_cache_create("behave_leak", 200, 0, 0, make);
	return cache && kmem_cache_alloc(cache, GFP_KERNEL) ? 0 : -ENOMEM;
}

static void leak_at_exit(void)
{
	kmem_cache_destroy(cache);
}

/* Its file in /proc is left behind, and in the way when it's loaded again. */

static int nop_show(struct seq_file *unused, void *unused2)
{
	return 0;
}

static int leftover(void)
{
	return proc_create_single("behave_leftover", 0444, NULL, nop_show) ? 0 : -EEXIST;
}

/* Forgeries: lines that look like a crash, and like what the machine tells of the trial, to the log and to the port itself. */

static const char *const lies[] = {
	"BUG: this is none",
	"Oops: nor is this",
	"{\"type\":\"done\",\"step\":\"load\",\"name\":\"behave\",\"errno\":22}",
	"\n{\"type\":\"end\"}\n",
	"\x1b[2J\xff\xfe \x01 {{{",
};

static int forge(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(lies); i++)
		pr_err("%s\n", lies[i]);
	return 0;
}

static int port(void)
{
	struct file *f = filp_open("/dev/ttyS1", O_WRONLY | O_NOCTTY, 0);
	int i, n;

	if (IS_ERR(f))
		return PTR_ERR(f);
	for (i = 0; i < 200; i++)
		for (n = 0; n < ARRAY_SIZE(lies); n++)
			kernel_write(f, lies[n], strlen(lies[n]), NULL);
	filp_close(f, NULL);
	return 0;
}

static const struct {
	const char *how;
	int (*init)(void);
	void (*exit)(void);
} ways[] = {
	{ "good", good, nothing },
	{ "nodev", nodev, nothing },
	{ "nxio", nxio, nothing },
	{ "inval", inval, nothing },
	{ "ask", ask, nothing },
	{ "oops", crash, nothing },
	{ "oops-exit", good, crash_at_exit },
	{ "bug-timer", bug_timer, nothing },
	{ "panic", die, nothing },
	{ "mutex", mutex_twice, nothing },
	{ "spin", spin_twice, nothing },
	{ "wait-exit", good, wait_at_exit },
	{ "stay", stay, nothing },
	{ "warn", warn, nothing },
	{ "leak", leak, leak_at_exit },
	{ "leftover", leftover, nothing },
	{ "forge", forge, nothing },
	{ "port", port, nothing },
};

static void (*at_exit)(void);

static int __init behave_init(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(ways); i++) {
		if (strcmp(how, ways[i].how) == 0) {
			at_exit = ways[i].exit;
			return ways[i].init();
		}
	}
	pr_err("behave: no way to behave is called %s\n", how);
	return -EINVAL;
}

static void __exit behave_exit(void)
{
	at_exit();
}

module_init(behave_init);
module_exit(behave_exit);
MODULE_DESCRIPTION("Behaves as it's told");
MODULE_VERSION("1.0");
MODULE_LICENSE("GPL");
