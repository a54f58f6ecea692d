//! Device ranges that are out of the host's stage 2, and come back.

use proptest::prelude::*;

use super::*;

#[test]
fn held_ranges_are_gone_until_the_last_holder_lets_go() {
    let mut world = World::new(Granule::Size4K, Blocks::InPlace);
    let tables = world.ownership.host_table_bytes();
    let bar = range(0x1000_0000, 0x10_0000);
    let part = range(0x1000_8000, 0x1_0000 - 0x100);
    let beyond = range(0x100f_0000, 0x2_0000);
    let (mut one, mut two) = (HeldSet::EMPTY, HeldSet::EMPTY);
    let reached = |world: &World| {
        [0x0fff_f000, 0x1000_0000, 0x1000_8000, 0x100f_f000, 0x1010_0000, 0x1011_0000]
            .map(|address| world.ownership.host_reaches(&world.p, PhysAddr(address)))
    };
    world.with(|o, cx| o.hold(cx, bar, &mut one, &mut cx.spare())).unwrap();
    assert_eq!(reached(&world), [true, false, false, false, true, true]);
    world.with(|o, cx| o.hold(cx, part, &mut two, &mut cx.spare())).unwrap();
    world.with(|o, cx| o.hold(cx, beyond, &mut two, &mut cx.spare())).unwrap();
    world.with(|o, cx| o.hold(cx, bar, &mut one, &mut cx.spare())).unwrap();
    assert_eq!(reached(&world), [true, false, false, false, false, true]);
    world.with(|o, cx| o.reserve_release(cx, one, &mut cx.spare())).unwrap();
    assert!(world.with(|o, cx| o.release(cx, &mut one, &mut cx.spare())));
    assert_eq!(reached(&world), [true, true, false, false, false, true]);
    assert!(world.with(|o, cx| o.release(cx, &mut two, &mut cx.spare())));
    assert_eq!(reached(&world), [true; 6]);
    assert_eq!(world.ownership.host_table_bytes(), tables);
    for kept in [range(RAM, PAGE), range(SMMU, PAGE), range(SMMU - PAGE, 2 * PAGE), range(1 << 40, PAGE)] {
        assert_eq!(world.with(|o, cx| o.hold(cx, kept, &mut one, &mut cx.spare())), Err(Status::Busy.into()));
    }
    assert_eq!(one, HeldSet::EMPTY);
}

#[test]
fn a_range_that_cannot_be_given_back_whole_is_not_given_back() {
    let mut world = World::new(Granule::Size4K, Blocks::InPlace);
    let tables = world.ownership.host_table_bytes();
    let (mut one, mut two) = (HeldSet::EMPTY, HeldSet::EMPTY);
    // A page of the first table stays out and one stays in, so that it is neither free nor full.
    let whole = range(0x1000_2000, 0x5f_e000);
    let parts = [range(0x1000_0000, PAGE), range(0x1020_0000, 0x21_0000)];
    world.with(|o, cx| o.hold(cx, whole, &mut one, &mut cx.spare())).unwrap();
    for part in parts {
        world.with(|o, cx| o.hold(cx, part, &mut two, &mut cx.spare())).unwrap();
    }
    let reached = |world: &World| {
        [0x1000_0000, 0x1000_2000, 0x101f_f000, 0x1020_0000, 0x1041_0000, 0x105f_f000]
            .map(|address| world.ownership.host_reaches(&world.p, PhysAddr(address)))
    };
    // The first gap needs no table, the second does.
    let taken = world.with(|_, cx| drain(cx));
    assert_eq!(
        world.with(|o, cx| o.reserve_release(cx, one, &mut cx.spare())).unwrap_err().status,
        Status::NoMemory
    );
    assert!(!world.with(|o, cx| o.release(cx, &mut one, &mut cx.spare())));
    assert_eq!(reached(&world), [false; 6], "all or nothing");
    // Whatever is mapped of a range that nobody holds is withdrawn when it is held again.
    world.with(|o, cx| {
        let tables = Tables { cpu: Some((o.cpu, HOST_DEVICE)), io: None };
        let mapping = Mapping::identity(range(0x1000_2000, PAGE));
        assert!(o.grant(cx, &tables, mapping, &mut Reserves::empty(cx, 0)));
    });
    assert!(world.ownership.host_reaches(&world.p, PhysAddr(0x1000_2000)));
    // What its way back lacks has to be there first.
    let again = world.with(|o, cx| o.hold(cx, whole, &mut one, &mut cx.spare()));
    assert_eq!(again.unwrap_err(), Failure { status: Status::NoMemory, detail: 1 });
    assert_eq!(one, HeldSet::EMPTY);
    world.with(|_, cx| refill(cx, taken));
    world.with(|o, cx| o.hold(cx, whole, &mut one, &mut cx.spare())).unwrap();
    assert_eq!(reached(&world), [false; 6]);
    let taken = world.with(|_, cx| drain(cx));
    assert!(!world.with(|o, cx| o.release(cx, &mut one, &mut cx.spare())));
    world.with(|_, cx| refill(cx, taken));
    // The next release, whichever, gives it back; it has to be withdrawn again.
    let mut none = HeldSet::EMPTY;
    world.with(|o, cx| o.release(cx, &mut none, &mut cx.spare()));
    assert_eq!(reached(&world), [false, true, true, false, true, true]);
    world.with(|o, cx| o.hold(cx, whole, &mut one, &mut cx.spare())).unwrap();
    assert_eq!(reached(&world), [false; 6]);
    assert!(
        world.with(|o, cx| o.release(cx, &mut one, &mut cx.spare()))
            && world.with(|o, cx| o.release(cx, &mut two, &mut cx.spare()))
    );
    assert_eq!(reached(&world), [true; 6]);
    assert_eq!(world.ownership.host_table_bytes(), tables);
}

/// What an attach that fails has taken from the host it can always give back: of a function whose BAR is all that a table has, with a bridge's
/// range around it.
#[test]
fn held_ranges_come_back_without_a_page_in_the_pool() {
    let mut world = World::new(Granule::Size4K, Blocks::InPlace);
    let mut others = HeldSet::EMPTY;
    for beside in [range(0x1000_0000, 0x10_0000), range(0x1014_0000, 0xc_0000)] {
        world.with(|o, cx| o.hold(cx, beside, &mut others, &mut cx.spare())).unwrap();
    }
    let reached = |world: &World| {
        [0x1010_0000, 0x1011_0000, 0x1012_0000, 0x1013_f000, 0x1020_0000, 0x1030_0000]
            .map(|address| world.ownership.host_reaches(&world.p, PhysAddr(address)))
    };
    let tables = world.ownership.host_table_bytes();
    let ranges = [
        range(0x1011_0000, PAGE),
        range(0x1010_0000, 0x4_0000),
        range(0x1012_0000, 0x20_0000),
        range(0x1020_0000, PAGE),
    ];
    for holds in [&ranges[..], &[ranges[1]], &[ranges[2], ranges[3], ranges[1], ranges[0]]] {
        world.with(|o, cx| {
            let (mut set, mut spare) = (HeldSet::EMPTY, cx.spare());
            for range in holds {
                o.hold(cx, *range, &mut set, &mut spare).unwrap();
            }
            let taken = drain(cx);
            assert!(o.release(cx, &mut set, &mut spare), "{holds:?}");
            refill(cx, taken);
        });
        assert_eq!(reached(&world), [true; 6], "{holds:?}");
        assert_eq!(world.ownership.host_table_bytes(), tables);
    }
}

/// Others hold a part in the middle, so that what is given back is two parts in one table; and the pool wants a page for itself meanwhile.
#[test]
fn held_ranges_come_back_around_those_of_others() {
    let own: [&[PhysRange]; 3] = [
        &[range(0x1000_0000, 0x20_0000)],
        &[range(0x1040_1000, 0x1f_f000), range(0x1000_0000, 0x20_0000)],
        &[range(0x1010_0000, PAGE), range(0x1010_0000, 0x20_0000)],
    ];
    for own in own {
        let mut world = World::new(Granule::Size4K, Blocks::InPlace);
        world.with(|o, cx| {
            let mut others = HeldSet::EMPTY;
            for part in [range(0x1011_0000, PAGE), range(0x1030_0000, PAGE), range(0x1040_0000, PAGE)] {
                o.hold(cx, part, &mut others, &mut cx.spare()).unwrap();
            }
            let tables = o.host_table_bytes();
            let (mut set, mut spare) = (HeldSet::EMPTY, cx.spare());
            for part in own {
                o.hold(cx, *part, &mut set, &mut spare).unwrap();
            }
            while cx.pool.take(cx.platform, 0).is_ok() {}
            cx.pool.take_kept(cx.platform, 0).unwrap();
            assert!(o.release(cx, &mut set, &mut spare), "{own:?}");
            assert_eq!(o.host_table_bytes(), tables, "{own:?}");
            for part in own {
                assert!(
                    o.host_reaches(cx.platform, part.start()) && o.host_reaches(cx.platform, part.last())
                );
            }
        });
    }
}

/// A machine with a page of RAM at 0x6000_0000, below devices; a guest, and that page.
fn world_with_ram_below_devices() -> (World, GuestHandle, FrameRun) {
    let mut world = World::with_devices(Granule::Size4K, Blocks::InPlace, |machine| {
        machine.memory.push(range(0x6000_0000, PAGE)).unwrap();
    });
    let (guest, ram) = (world.guest(), world.run(range(0x6000_0000, PAGE)));
    (world, guest, ram)
}

/// Releases a set with an empty pool, while another CPU has given away that page, and with it the table that nothing had been reserved for;
/// whether all came back.
fn release_late(
    o: &mut Ownership,
    cx: &Cx<'_>,
    set: &mut HeldSet,
    guest: GuestHandle,
    ram: &FrameRun,
) -> bool {
    let mut spare = cx.spare();
    o.reserve_release(cx, *set, &mut spare).unwrap();
    o.change(cx, Change::Donate(guest), ram).unwrap();
    let taken = drain(cx);
    let is_complete = o.release(cx, set, &mut spare);
    refill(cx, taken);
    is_complete
}

/// What another stream could not give back whole stays away when a range around a part of it is given back, and divides that.
#[test]
fn tables_around_a_range_on_its_way_back_are_reserved() {
    let (mut world, guest, ram) = world_with_ram_below_devices();
    world.with(|o, cx| {
        let (mut one, mut two) = (HeldSet::EMPTY, HeldSet::EMPTY);
        o.hold(cx, range(0x6000_1000, 0x2f_f000), &mut one, &mut cx.spare()).unwrap();
        assert!(!release_late(o, cx, &mut one, guest, &ram));
        o.hold(cx, range(0x6020_0000, BLOCK), &mut two, &mut cx.spare()).unwrap();
        let taken = drain(cx);
        let lacking = Failure { status: Status::NoMemory, detail: 1 };
        assert_eq!(o.reserve_release(cx, two, &mut cx.spare()), Err(lacking));
        refill(cx, taken);
        let mut spare = cx.spare();
        o.reserve_release(cx, two, &mut spare).unwrap();
        let taken = drain(cx);
        o.release(cx, &mut two, &mut spare);
        assert!(o.host_reaches(cx.platform, PhysAddr(0x603f_f000)));
        refill(cx, taken);
    });
}

/// An attach that fails gives back all that it has taken, though a part of it was on its way back, and not whole.
#[test]
fn a_range_on_its_way_back_is_held_and_takes_nothing_with_it() {
    let (mut world, guest, ram) = world_with_ram_below_devices();
    world.with(|o, cx| {
        let returning = range(0x6000_1000, 0x7f_f000);
        let (mut one, mut other) = (HeldSet::EMPTY, HeldSet::EMPTY);
        // Its place comes before that of `returning`, and is free again afterwards.
        for part in [range(0x7000_0000, PAGE), returning] {
            o.hold(cx, part, &mut one, &mut cx.spare()).unwrap();
        }
        o.hold(cx, range(0x6070_0000, PAGE), &mut other, &mut cx.spare()).unwrap();
        assert!(!release_late(o, cx, &mut one, guest, &ram));
        o.change(cx, Change::Reclaim(guest), &ram).unwrap();
        let (mut set, mut spare) = (HeldSet::EMPTY, cx.spare());
        for part in [range(0x6060_0000, 2 * BLOCK), returning] {
            o.hold(cx, part, &mut set, &mut spare).unwrap();
        }
        let taken = drain(cx);
        assert!(o.release(cx, &mut set, &mut spare));
        assert!(o.host_reaches(cx.platform, PhysAddr(0x6080_0000)));
        refill(cx, taken);
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a stream and others hold, what the stream has taken comes back without a page of the pool: with the tables that were emptied, or with
    /// those that were reserved for it. So it does if there is something on its way back.
    #[test]
    fn any_held_ranges_come_back(
        late in proptest::option::of((0u64..4, 0u64..128, 1u64..6)),
        others in proptest::collection::vec((0u64..4, 0u64..128, 1u64..6), 0..6),
        own in proptest::collection::vec((0u64..4, 0u64..128, 1u64..6), 1..6),
        holds_late in any::<bool>(),
        is_reserved in any::<bool>(),
    ) {
        let part = |(grid, place, count): (u64, u64, u64)| {
            let grid = [0x1000, 0x4_0000, 0x10_0000, 0x20_0000][grid as usize];
            range(0x6000_1000 + place * grid % 0x80_0000, count * grid)
        };
        let (mut world, guest, ram) = world_with_ram_below_devices();
        world.with(|o, cx| {
            let reached = |o: &Ownership| -> std::vec::Vec<bool> {
                (0..0x1400).map(|page| o.host_reaches(cx.platform, PhysAddr(0x6000_0000 + page * PAGE))).collect()
            };
            let (mut one, mut theirs, mut set, mut spare) = (HeldSet::EMPTY, HeldSet::EMPTY, HeldSet::EMPTY, cx.spare());
            if let Some(late) = late {
                o.hold(cx, part(late), &mut one, &mut cx.spare()).unwrap();
            }
            for other in others {
                let _ = o.hold(cx, part(other), &mut theirs, &mut cx.spare());
            }
            let none_is_late = late.is_none() || release_late(o, cx, &mut one, guest, &ram);
            let (tables, free, before) = (o.host_table_bytes(), cx.pool.state().free, reached(o));
            for own in own.into_iter().chain(late.filter(|_| holds_late)) {
                let _ = o.hold(cx, part(own), &mut set, &mut spare);
            }
            if is_reserved {
                spare.release();
                o.reserve_release(cx, set, &mut spare).unwrap();
            }
            let taken = drain(cx);
            let is_complete = o.release(cx, &mut set, &mut spare);
            refill(cx, taken);
            drop(spare);
            prop_assert!(reached(o).into_iter().zip(before).all(|(is, was)| is || !was));
            if none_is_late {
                prop_assert!(is_complete);
                prop_assert_eq!((o.host_table_bytes(), cx.pool.state().free), (tables, free));
            }
            Ok(())
        })?;
    }
}

#[test]
fn few_ranges_overlap_one_and_many_are_held() {
    let mut world = World::new(Granule::Size4K, Blocks::InPlace);
    let mut set = HeldSet::EMPTY;
    let mut hold = |start, size_bytes| {
        world.with(|o, cx| o.hold(cx, range(start, size_bytes), &mut set, &mut cx.spare()))
    };
    hold(0x1000_0000, 0x10_0000).unwrap();
    for index in 0..8 {
        hold(0x1000_0000 + index * 0x2000, PAGE).unwrap();
    }
    assert_eq!(hold(0x1001_0000, PAGE), Err(Status::NoSpace.into()));
    hold(0x1000_0000, PAGE).unwrap();
    for index in 0..256 - 9 {
        hold(0x1100_0000 + index * PAGE, PAGE).unwrap();
    }
    assert_eq!(hold(0x1200_0000, PAGE), Err(Status::NoSpace.into()));
    assert!(world.with(|o, cx| o.release(cx, &mut set, &mut cx.spare())));
    assert!(world.ownership.host_reaches(&world.p, PhysAddr(0x1000_0000)));
    assert!(world.ownership.host_reaches(&world.p, PhysAddr(0x110f_6000)));
}
