// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * The part of the module that Linux's headers are needed for: the device, pages, and who drives what. What a program may ask is
 * decided in src/service.rs.
 */
#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/gfp.h>
#include <linux/io.h>
#include <linux/iommu.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/of.h>
#include <linux/of_address.h>
#include <linux/pci.h>
#include <linux/rwsem.h>
#include <linux/uaccess.h>

/* src/kernel.rs */
int hyp_iommu_probe(void);
bool hyp_iommu_is_served_beside(u32 number);
int hyp_iommu_serve(u32 number, u64 *record);

/* For src/kernel.rs. */
u64 hyp_iommu_allocate(u32 order);
void hyp_iommu_free(u64 start, u32 order);
u64 hyp_iommu_load(u64 address);
void hyp_iommu_store(u64 address, u64 value);
bool hyp_iommu_has_driver(u64 base, u64 stream);
void __noreturn hyp_iommu_bug(void);

#define RECORD_WORDS 5

/* Shared by calls; a request that uses a page, or changes which there are, has it alone. */
static DECLARE_RWSEM(requests);

/* Pages outlive the program that asked for them, and so the module must stay. */
u64 hyp_iommu_allocate(u32 order)
{
	struct page *page = alloc_pages(GFP_KERNEL | __GFP_ZERO | __GFP_NOWARN, order);

	if (!page)
		return 0;
	__module_get(THIS_MODULE);
	return page_to_phys(page);
}

void hyp_iommu_free(u64 start, u32 order)
{
	__free_pages(phys_to_page(start), order);
	module_put(THIS_MODULE);
}

u64 hyp_iommu_load(u64 address)
{
	return READ_ONCE(*(u64 *)phys_to_virt(address));
}

void hyp_iommu_store(u64 address, u64 value)
{
	WRITE_ONCE(*(u64 *)phys_to_virt(address), value);
}

static bool is_behind(struct device *device, u64 base, u64 stream)
{
	struct iommu_fwspec *spec = dev_iommu_fwspec_get(device);
	struct device_node *smmu = spec ? to_of_node(spec->iommu_fwnode) : NULL;
	struct resource registers;
	unsigned int i;

	if (!smmu || of_address_to_resource(smmu, 0, &registers) || registers.start != base)
		return false;
	for (i = 0; i < spec->num_ids; i++)
		if (spec->ids[i] == stream)
			return true;
	return false;
}

bool hyp_iommu_has_driver(u64 base, u64 stream)
{
	struct pci_dev *function = NULL;

	for_each_pci_dev(function) {
		if (function->dev.driver && is_behind(&function->dev, base, stream)) {
			pci_dev_put(function);
			return true;
		}
	}
	return false;
}

void __noreturn hyp_iommu_bug(void)
{
	BUG();
}

static long device_ioctl(struct file *file, unsigned int number, unsigned long argument)
{
	u64 record[RECORD_WORDS];
	int status;

	if (!capable(CAP_SYS_RAWIO))
		return -EPERM;
	if (copy_from_user(record, (void __user *)argument, sizeof(record)))
		return -EFAULT;
	if (hyp_iommu_is_served_beside(number)) {
		if (down_read_interruptible(&requests))
			return -ERESTARTSYS;
		status = hyp_iommu_serve(number, record);
		up_read(&requests);
	} else {
		if (down_write_killable(&requests))
			return -ERESTARTSYS;
		status = hyp_iommu_serve(number, record);
		up_write(&requests);
	}
	if (!status && copy_to_user((void __user *)argument, record, sizeof(record)))
		return -EFAULT;
	return status;
}

static const struct file_operations operations = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = device_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "hyp-iommu",
	.fops = &operations,
	.mode = 0600,
};

/*
 * An HVC without a hypervisor is an undefined instruction. The hypervisor says in the device tree which memory it keeps for itself,
 * and so that it is there.
 */
static bool is_announced(void)
{
	struct device_node *reserved = of_find_node_by_path("/reserved-memory");
	struct device_node *child;
	bool found = false;

	for_each_child_of_node(reserved, child)
		found |= of_node_name_eq(child, "hypervisor");
	of_node_put(reserved);
	return found;
}

static int __init start(void)
{
	int status = is_announced() ? hyp_iommu_probe() : -ENODEV;

	if (status == -ENODEV)
		pr_info("hyp_iommu: Linux does not run above the hypervisor that this module is for\n");
	else if (status)
		pr_err("hyp_iommu: the hypervisor has another version of its interface than this module\n");
	return status ? status : misc_register(&device);
}

static void __exit stop(void)
{
	misc_deregister(&device);
}

module_init(start);
module_exit(stop);
MODULE_DESCRIPTION("Calls of the hypervisor for root");
MODULE_LICENSE("Dual MIT/GPL");
