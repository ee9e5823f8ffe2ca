/*
 * Writes its standard input to a file, PATH, and makes the directories that it is in; of a PATH that ends with a
 * slash it makes the directory. Kiln executes it in a container that has nothing but the directories of a run, for
 * BuildKit has no words for that. It ends with the number of the error, 0 for none.
 *
 * "make shim" compiles it into put-amd64 and put-arm64.
 */

#include "../sys.h"

enum { EINTR = 4, EIO = 5, EEXIST = 17, EINVAL = 22, AT_FDCWD = -100, O_WRONLY = 1, O_CREAT = 0100, O_TRUNC = 01000 };

#if defined(__x86_64__)
enum { READ = 0, WRITE = 1, EXIT_GROUP = 231, OPENAT = 257, MKDIRAT = 258 };
#else
enum { READ = 63, WRITE = 64, EXIT_GROUP = 94, OPENAT = 56, MKDIRAT = 34 };
#endif

static char buf[64 << 10];

__attribute__((noreturn)) static void leave(long code)
{
	for (;;)
		call(EXIT_GROUP, code, 0, 0, 0, 0, 0);
}

/* returns r unless it is an error, with which the program ends */
static long ok(long r)
{
	if (r < 0)
		leave(-r);
	return r;
}

static void copy(int to)
{
	for (;;) {
		long n = call(READ, 0, (long)buf, sizeof buf, 0, 0, 0);
		if (n == -EINTR)
			continue;
		if (ok(n) == 0)
			return;
		for (long done = 0; done < n;) {
			long r = call(WRITE, to, (long)buf + done, n - done, 0, 0, 0);
			if (r == -EINTR)
				continue;
			if (ok(r) == 0)
				leave(EIO);
			done += r;
		}
	}
}

__attribute__((used, noreturn)) void begin(word *stack)
{
	char **argv = (char **)(stack + 1);
	if (stack[0] != 2 || argv[1][0] != '/' || argv[1][1] == 0)
		leave(EINVAL);
	char *c = argv[1] + 1;
	for (; *c; c++) {
		if (*c != '/')
			continue;
		*c = 0;
		long r = call(MKDIRAT, AT_FDCWD, (long)argv[1], 0755, 0, 0, 0);
		if (r != -EEXIST)
			ok(r);
		*c = '/';
	}
	if (c[-1] != '/')
		copy(ok(call(OPENAT, AT_FDCWD, (long)argv[1], O_WRONLY | O_CREAT | O_TRUNC, 0644, 0, 0)));
	leave(0);
}
