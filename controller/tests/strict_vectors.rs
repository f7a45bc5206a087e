//! Numbered vectors of the strict rules, calculated by hand from the pressure model.
//!
//! Each vector is a number, the reasoning, and a script (`strict_vectors/script.rs` lists the
//! commands). `=` gives the expected result; a command without `=` is a step or a statement about
//! the state. Pages for limits, usage and levels; chunks for queues; bytes where noted.
//!
//! Unless a script sets other sizes, S = 1536, Rmin = Wmin = 4096 and the host floor is 0: an idle
//! flow holds 9728 B, 2.375 pages, and its first chunk in each direction is charged. `flat` sets
//! soft and low to hard, so that the soft flag is never set; otherwise soft is 2/3 and low 1/2 of
//! hard.
//!
//! S1 to S20 were calculated with the rules. Where the product decided otherwise, the reasoning
//! starts with "adapted". S17 and S18 are arithmetic of the composite limit: they are among the
//! linux vectors.

#[path = "strict_vectors/script.rs"]
mod script;

type Vector = (&'static str, &'static str, &'static str);

#[test]
fn model_vectors() {
    run(MODEL);
}

#[test]
fn own_vectors() {
    run(OWN);
    assert!(MODEL.len() + OWN.len() >= 40);
}

fn run(table: &[Vector]) {
    for (number, why, script) in table {
        script::World::new(number, why).run(script);
    }
}

#[rustfmt::skip]
const MODEL: &[Vector] = &[
    ("S1", "adapted (admission is two steps): 3449 flows hold 33,551,872 B; 2560 B are free, S fits, the other 8192 B do not",
     "budget A 8192; flows 3449 A; bytes A 33551872; usage A 8192; admit x A = hard; bytes A 33551872; fail A 1"),
    ("S2", "the SYN that waits needs 9728 B and is woken by the first close, not by a timer",
     "budget A 8192; flows 3449 A; flow y A = hard; wait A 8 9728; wake A = none; dropone A; wake A = 8; flow y A; usage A 8192"),
    ("S3", "adapted (bytes of a chunk are the stack's): the chunk of an open window is paid, filling it moves nothing",
     "budget A 3 flat; flow a A; open a 1 = 1; usage A 3; fill a 1 = 1; usage A 3; rmem a 1; credit a 0"),
    ("S4", "window 32 chunks: held 136,704; 125,440 B left = 30 chunks + 1 of the reserve; then all of the window still fits",
     "budget A 64; flow a A; open a 32 = 32; held a 136704; usage A 34; send a 32 = 31; bytes A 259584; usage A 64; fill a 32 = 32; usage A 64"),
    ("S5", "65,160 B cost ceil(65160/4032) = 17 chunks: 1536 + 69,632 + 4096; arrival turns credit into rmem",
     "budget A 8192; flow a A; open a 17 = 17; held a 75264; usage A 19; fill a 17 = 17; usage A 19; rmem a 17; credit a 0"),
    ("S6", "A 4 pages, B 3: the chunk leaves A's page and takes one of B's, net 0 at a full host",
     "host 7; budget A 100 under host; budget B 100 under host; flow a A; fill a 2 = 2; flow b B; send b 1 = 1; level host 7; move a b 1 = 1; usage A 3; usage B 4; level host 7; failat host 0"),
    ("S7", "A's chunk is inside its reserve and frees nothing, B's second chunk costs a page: net +1 refused; into B's reserve: free",
     "host 6; budget A 100 under host; budget B 100 under host; flow a A; fill a 1 = 1; flow b B; send b 1 = 1; level host 6; move a b 1 = 0; rmem a 1; wmem b 1; level host 6; failat host 1; acked b 1; move a b 1 = 1; level host 6; rmem a 0; wmem b 1"),
    ("S8", "a min is charged when set: A finds the host full, B finds its own 100 pages",
     "host 1000; budget B 500 under host min 100; budget A 2000 under host; flow a A; open a 898 = 898; usage A 900; level host 1000; open a 1 = 0; failat host 1; flow b B; open b 98 = 98; usage B 100; level host 1000"),
    ("S9", "max_eff = max(limit, usage) ratchets down; growth only below the limit",
     "budget A 500 flat; flow a A; open a 498 = 498; usage A 500; limit A 300 flat; eff A 500; close a 50 = 50; usage A 450; eff A 450; open a 1 = 0; close a 170 = 170; usage A 280; eff A 300; open a 20 = 20; usage A 300; open a 1 = 0"),
    ("S10", "2000 idle flows are 4750 pages fixed; E = 3442; enter above 3442*5461/8192 = 2294; leave at 1721",
     "budget A 8192; flows 1999 A; flow a A; bytes A 19456000; usage A 4750; flag A off; open a 2295 = 2295; flag A off; open a 1 = 1; flag A on; close a 573 = 573; flag A on; close a 1 = 1; flag A off"),
    ("S11", "two active: grows while 3442 > 2 * elastic after, so up to 1720",
     "budget A 8192; flows 1998 A; flow a A; flow b A; open a 1001 = 1001; open b 1297 = 1297; flag A on; open a 1 = 1; open a 1000 = 719; open a 1 = 0"),
    ("S12", "137 idle flows give 15 chunks each = 8,417,280 B; their edges stay; in a full container one gets its reserve only",
     "budget A 17375; idleflows 1000 A 16; usage A 17375; admit x A = hard; demote 137 15; headroom A 8417280; flow x A; send x 2048 = 2048; send x 6 = 5; fill #0 16 = 1; rmem #0 1"),
    ("S13", "adapted (host thresholds scale, K7): fixed 30, soft 30 + 29970*2/3 = 20010; X = 20010 - 900, then 20010 - 5100 - 800",
     "host 30000 20000 15000; budget A 30000 flat under host; crowd 9 30000 100; flow a A; open a 19109 = 19109; usage A 19111; levelflag host on; publish host = 19110; pressure A yes; open a 1 = 0; grow B1 5100; usage B1 5100; publish host = 14110"),
    ("S14", "half-open room 8192/8 = 1024 pages = 4,194,304 B; 2730 * 1536 = 4,193,280 fit",
     "budget A 8192; halves 2730 A; bytes A 4193280; half x A = halfopen; bytes A 4193280"),
    ("S15", "adapted (which orphan dies is the stack's): its 13,824 B make the live flow's page fit",
     "budget A 6 flat; flow o A; send o 2 = 2; flow a A; usage A 6; open a 2 = 1; drop o; open a 1 = 1"),
    ("S16", "4096 entries of 64 B are 64 pages; recycling one changes nothing",
     "budget A 100; compact A 262144 = yes; usage A 64; uncompact A 64; compact A 64 = yes; usage A 64; bytes A 262144"),
    ("S19", "caps 262,144; lowered to what SO_MEMINFO shows, then to the new cap",
     "sizes 1536 4096 4096 32768; budget A 200; flow a A; raise a 229376 = yes; caps a 262144; lower a 62144; caps a 200000; lower a 134464; caps a 65536; bytes A 75264"),
    ("S20", "offload on: 9728 B fit; off: 1536 + 69,632 + 4096 = 75,264 B do not",
     "budget A 13 flat; sizes 1536 69632 4096 0; admit x A = hard; usage A 0; sizes 1536 4096 4096 0; admit y A = ok"),
];

#[rustfmt::skip]
const OWN: &[Vector] = &[
    ("T1", "reserve: a full container still gives each flow its first chunk both ways",
     "budget A 3 flat; flow a A; usage A 3; open a 1 = 1; send a 1 = 1; bytes A 9728; reserve A 0"),
    ("T2", "refused: nothing changes but the failcnt",
     "budget A 3 flat; flow a A; open a 1 = 1; open a 1 = 0; send a 2 = 1; bytes A 9728; fail A 2; state A hard"),
    ("T3", "prefix grant: 40,960 - 9728 = 31,232 B = 7 chunks, and 1 of the reserve",
     "budget A 10 flat; flow a A; open a 20 = 8; bytes A 38400; usage A 10"),
    ("T4", "undo at the group: 29,728 B are 8 pages, the group has 5; host and group as before, failcnt at the group",
     "host 100; group g 5 under host; budget A 50 flat under g; flow a A; raise a 20000 = no; level g 3; level host 3; failat g 1; failat host 0; fail A 0"),
    ("T5", "undo at the host: the group below it does not keep the pages",
     "host 4; group g 50 under host; budget A 50 flat under g; flow a A; raise a 9000 = no; level g 3; level host 3; failat g 0; failat host 1"),
    ("T6", "pages are rounded once a container: two flows are 19,456 B = 4.75 pages",
     "budget A 9; flow a A; flow b A; usage A 5"),
    ("T7", "out-of-order data uses slots already paid; settling is a category move; reading shrinks the span",
     "budget A 20; flow a A; open a 4 = 4; bytes A 22016; ofo a 2 = 2; settle a 2; bytes A 22016; rmem a 2; credit a 2; free a 2; bytes A 13824"),
    ("T8", "pruned slots are credit again: the window stays open",
     "budget A 20; flow a A; open a 4 = 4; ofo a 3 = 3; prune a 3; credit a 4; bytes A 22016"),
    ("T9", "beyond the span a fill asks at once: three chunks of which one is the reserve",
     "budget A 20; flow a A; open a 1 = 1; fill a 3 = 3; bytes A 17920; credit a 0"),
    ("T10", "a fill beyond the span in a full container is a prefix",
     "budget A 3 flat; flow a A; open a 1 = 1; fill a 3 = 1; rmem a 1; bytes A 9728"),
    ("T11", "closing gives back what is unfilled, down to the reserve",
     "budget A 20; flow a A; open a 3 = 3; fill a 1 = 1; close a 5 = 2; bytes A 9728; rmem a 1"),
    ("T12", "reading the reserve's chunk refills the reserve, not the container",
     "budget A 20; flow a A; fill a 1 = 1; reserve A 4096; free a 1; bytes A 9728; reserve A 8192"),
    ("T13", "acknowledged chunks above Wmin go back",
     "budget A 20; flow a A; send a 3 = 3; bytes A 17920; acked a 2; bytes A 9728; wmem a 1"),
    ("T14", "min is charged at every level when set, and used first: nothing moves above until usage exceeds it",
     "host 100; group g 50 under host; budget A 40 flat under g min 20; level g 20; level host 20; flow a A; open a 18 = 18; usage A 20; level g 20; open a 6 = 6; usage A 26; level g 26; level host 26"),
    ("T15", "a second min that does not fit is refused, and nothing of it stays",
     "host 10; budget A 9 under host min 6; budget B 9 under host; min B 5 = no; level host 6; min B 4 = yes; level host 10"),
    ("T16", "lowering a min gives back what is unused of it",
     "host 100; budget A 50 under host min 30; flow a A; level host 30; min A 2 = yes; level host 3; min A 0 = yes; level host 3"),
    ("T17", "a min above the container's own hard is refused",
     "budget A 10; min A 11 = no; min A 10 = yes"),
    ("T18", "below its min a container grows whatever the fair level says, and not beyond",
     "host 100 10 5; budget A 90 flat under host; flow a A; open a 60 = 60; levelflag host on; budget B 50 flat under host min 10; share host 0; flow b B; open b 8 = 8; usage B 10; open b 1 = 0; pressure A yes; pressure B no"),
    ("T19", "ownership: the taker's refusal leaves the bytes with the giver",
     "budget A 20; budget B 3 flat; flow a A; fill a 3 = 3; flow b B; send b 1 = 1; move a b 2 = 0; rmem a 3; wmem b 1; fail B 1; bytes A 17920"),
    ("T20", "into the taker's reserve the common level only sees the giver shrink",
     "host 100; budget A 20 under host; budget B 20 under host; flow a A; fill a 3 = 3; flow b B; level host 8; move a b 1 = 1; usage A 4; usage B 3; level host 7"),
    ("T21", "no common level: the taker's own chain decides",
     "host 100; group g 3; budget A 20 under host; budget B 20 flat under g; flow a A; fill a 3 = 3; flow b B; send b 1 = 1; move a b 1 = 0; failat g 1; level host 5; rmem a 3"),
    ("T22", "under a full common group both levels below it change and it does not",
     "host 50; group g 8 under host; budget A 20 under g; budget B 20 under g; flow a A; fill a 3 = 3; flow b B; send b 1 = 1; level g 8; move a b 2 = 2; level g 8; failat g 0; usage A 3; usage B 5"),
    ("T23", "lowered below the reserves: they stay good, and the maximum follows usage down",
     "budget A 10 flat; flow a A; limit A 2 flat; eff A 3; open a 1 = 1; send a 1 = 1; drop a; usage A 0; eff A 2"),
    ("T24", "raising a limit reopens",
     "budget A 3 flat; flow a A; open a 2 = 1; wait A 5 4096; wake A = none; limit A 10 flat; wake A = 5; wake A = none"),
    ("T25", "scaled thresholds: 40 pages of device queue and a flow are 43 fixed; E 57; enter above 37, leave at 28",
     "budget A 100 dev 163840; flow a A; open a 38 = 38; flag A off; open a 1 = 1; flag A on; close a 9 = 9; flag A on; close a 1 = 1; flag A off"),
    ("T26", "half-open is S only; establishing charges the rest at once",
     "budget A 20; half x A = ok; bytes A 1536; establish x = ok; bytes A 9728; reserve A 8192"),
    ("T27", "13 pages: 6656 B of half-open flows = 4; establishing one makes room for another",
     "budget A 13 flat; halves 3 A; half x A = ok; half y A = halfopen; establish x = ok; half y A = ok"),
    ("T28", "the host socket's caps: floor at admission, raised and lowered above it",
     "sizes 1536 4096 4096 6912; budget A 20; flow a A; bytes A 16640; raise a 10000 = yes; bytes A 26640; lower a 99999; bytes A 16640; caps a 6912"),
    ("T29", "no cap is raised under pressure",
     "budget A 30; flow a A; open a 26 = 26; flag A on; raise a 1 = no; close a 20 = 20; flag A off; raise a 1 = yes"),
    ("T30", "UDP takes at most an eighth: 64 pages give 32,768 B",
     "budget A 64; udp A 32768 = yes; udp A 1 = no; usage A 8; unudp A 32768; usage A 0; udp A 1 = yes"),
    ("T31", "UDP never eats a flow's reserve: 12,288 - 9728 are left, an eighth is 1536",
     "budget A 3 flat; flow a A; udp A 1536 = yes; bytes A 11264; udp A 1 = no; open a 1 = 1; send a 1 = 1"),
    ("T32", "compact entries fill the rest of a page, and no more than hard",
     "budget A 3 flat; flow a A; compact A 2560 = yes; bytes A 12288; compact A 64 = no; uncompact A 64; compact A 64 = yes"),
    ("T33", "a device queue that does not fit refuses the container",
     "budget A 10; dev A 50000 = no; usage A 0; dev A 40960 = yes; usage A 10"),
    ("T34", "E 25, alone: elastic up to 24; then b has its reserve, and above it its share of 25/2",
     "budget A 30; flow a A; flow b A; open a 20 = 20; flag A on; send a 9 = 6; open b 1 = 1; send b 1 = 1; open b 1 = 1; open a 1 = 0"),
    ("T35", "an idle flow leaves the soft test and the share: E 95, enter above 62, leave at 47",
     "budget A 100; flow a A; flow b A; open a 41 = 41; open b 31 = 31; flag A on; open a 8 = 7; idle b; flag A off; busy b; flag A on"),
    ("T36", "demoting idle credit does not move the flag: usage and idle fall together",
     "budget A 100; flow a A; flow b A; open b 41 = 41; idle b; flag A off; open a 50 = 50; flag A off; close b 40 = 40; flag A off; usage A 54"),
    ("T37", "arrival ends idleness by itself",
     "budget A 100; flow a A; open a 90 = 90; flag A on; idle a; flag A off; fill a 1 = 1; flag A on"),
    ("T38", "reopen order: first come first served, a key once, at its first place",
     "budget A 3 flat; flow a A; open a 2 = 1; wait A 1 4096; wait A 2 4096; wait A 1 4096; wake A = none; limit A 5 flat; wake A = 1; wake A = 2; wake A = none"),
    ("T39", "the head is not overtaken by a smaller need",
     "budget A 3 flat; flow a A; open a 2 = 1; wait A 1 20000; wait A 2 4096; limit A 5 flat; wake A = none; forget A 1; wake A = 2"),
    ("T40", "room freed by another container under a full host wakes by the level's mark",
     "host 6; budget A 20 flat under host; budget B 20 flat under host; flow a A; flow b B; open b 2 = 1; wait B 9 4096; wake B = none; levelwake host no; drop a; levelwake host yes; levelwake host no; wake B = 9; open b 1 = 1"),
    ("T41", "refused by its share with room to spare: woken by a release, and once only",
     "budget A 30; flow a A; flow b A; open a 20 = 20; send a 9 = 6; open a 1 = 0; wait A 7 1; wake A = none; close a 1 = 1; wake A = 7; open a 2 = 1; wait A 7 1; wake A = none"),
    ("T42", "moving a container: all or nothing, the common host sees nothing",
     "host 100; group g 50 under host; group h 4 under host; budget A 20 flat under g; flow a A; open a 4 = 4; level g 6; parent A h = ancestor0; level g 6; level h 0; level host 6; close a 2 = 2; parent A h = ok; level g 0; level h 4; level host 4"),
    ("T43", "moving out from under every level gives the charge back",
     "host 100; budget A 20 under host min 10; level host 10; parent A none = ok; level host 0; parent A host = ok; level host 10"),
    ("T44", "a prefix at the host: 3 pages left are 3 chunks, and 1 of the reserve",
     "host 6; budget A 20 flat under host; flow a A; open a 10 = 4; level host 6; failat host 1; fail A 0"),
    ("T45", "weights: X = 10 and weight 3 allow 30 pages",
     "host 100 10 5; budget A 90 flat under host weight 3; flow a A; open a 11 = 11; levelflag host on; share host 10; open a 50 = 17; usage A 30; share host max; open a 1 = 1"),
    ("T46", "state: hard after a refusal, until the next charge passes",
     "budget A 4 flat; flow a A; state A none; open a 9 = 2; state A hard; close a 1 = 1; state A hard; open a 1 = 1; state A none"),
    ("T47", "everything goes back to zero, at every level",
     "host 100; group g 50 under host; budget A 40 dev 8192 under g; flow a A; open a 9 = 9; fill a 4 = 4; send a 5 = 5; udp A 700 = yes; compact A 64 = yes; drop a; unudp A 700; uncompact A 64; usage A 2; leave A; usage A 0; level g 0; level host 0"),
    ("T48", "no limit: everything fits, no flag",
     "budget A none; flow a A; open a 100000 = 100000; send a 100000 = 100000; flag A off; pressure A no"),
    ("T49", "reserves are frozen at admission: other sizes for later flows change nothing",
     "budget A 100; sizes 1536 8192 4096 0; flow a A; sizes 1536 4096 4096 0; flow b A; held a 13824; held b 9728; open a 2 = 2; held a 13824; open b 2 = 2; held b 13824"),
    ("T50", "establishing is all or nothing too: 1536 + 8192 in two pages of room is refused and stays half-open",
     "budget A 16 flat; flows 6 A; half x A = ok; usage A 15; establish x = hard; bytes A 59904; dropone A; establish x = ok"),
    ("T51", "the flag is set and no share known: parts of 33; soft 9 + 91*40/100 = 45; above it only those below their part grow",
     "host 100 40 30; budget A 100 flat under host; budget B 100 flat under host; budget C 100 flat under host; flow a A; flow b B; flow c C; open a 40 = 40; levelflag host on; open a 1 = 0; open b 60 = 31; usage B 33; open b 1 = 0; level host 78; pressure A no; share host 20; pressure A yes; pressure B yes; pressure C no"),
    ("T52", "reservations: 21 flows are 49.9 pages of a part of 50, and the sibling finds its own 50",
     "host 100 40 30; budget A 100 flat under host; budget B 100 flat under host; flows 21 A; usage A 50; admit x A = share; flows 21 B; level host 100"),
    ("T53", "what the others can never take is a child's own: of 100, B cannot take more than 30, so 70 pages hold 29 flows",
     "host 100 40 30; budget A 100 flat under host; budget B 30 flat under host; flows 29 A; usage A 69; admit x A = share; limit B 10 flat; flows 8 A; usage A 88; admit y A = share"),
    ("T54", "beyond a part of 10 reservations end at soft: 16 flows are 38 pages, 17 would be 41; alone there is no part",
     "host 100 40 30; budget A 100 flat under host; budget B 100 flat under host weight 9; flows 16 A; levelflag host off; admit x A = share; parent B none = ok; flows 26 A; level host 100"),
    ("T55", "what is guaranteed to others is not room that somebody took: soft for reservations is 50 + 50*40/100 = 70",
     "host 100 40 30; budget C 100 flat under host min 50; budget B 100 flat under host weight 98; budget A 100 flat under host; flows 8 A; level host 69; admit x A = share; level host 69"),
];
