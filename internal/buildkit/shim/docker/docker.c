/*
 * The docker program of a step's container. It hands its arguments, its directory and its environment to
 * kiln through a socket, prints what comes back, and ends as it is told; it knows no docker command.
 *
 * It needs no C library, so that it runs in every image. What travels is described in ../shim.go.
 * "make shim" compiles it into docker-amd64 and docker-arm64, of less than two kilobytes each.
 */

#include "../sys.h"

#define SOCKET "/run/kiln/docker.sock"
#define LOST "docker: the connection to kiln was lost\n"
#define NONE "docker: kiln does not answer at " SOCKET "\n"

enum { FAILED = 125, AF_UNIX = 1, SOCK_STREAM = 1, SHUT_WR = 1, MSG_NOSIGNAL = 0x4000, EINTR = 4 };

#if defined(__x86_64__)
enum { READ = 0, WRITE = 1, SOCKET_ = 41, CONNECT = 42, SENDTO = 44, SHUTDOWN = 48, GETCWD = 79, EXIT_GROUP = 231 };
#else
enum { READ = 63, WRITE = 64, SOCKET_ = 198, CONNECT = 203, SENDTO = 206, SHUTDOWN = 210, GETCWD = 17, EXIT_GROUP = 94 };
#endif

static char buf[64 << 10];
static word used;
static int sock;

static void leave(int code)
{
	for (;;)
		call(EXIT_GROUP, code, 0, 0, 0, 0, 0);
}

static void fail(const char *text, word n)
{
	call(WRITE, 2, (long)text, n, 0, 0, 0);
	leave(FAILED);
}

static long readsome(int fd, char *to, word n)
{
	long r;
	do
		r = call(READ, fd, (long)to, n, 0, 0, 0);
	while (r == -EINTR);
	return r;
}

/* sends n bytes and reports whether the other side still takes them */
static int sendall(const char *from, word n)
{
	while (n > 0) {
		long r = call(SENDTO, sock, (long)from, n, MSG_NOSIGNAL, 0, 0);
		if (r == -EINTR)
			continue;
		if (r <= 0)
			return 0;
		from += r;
		n -= r;
	}
	return 1;
}

static void flush(void)
{
	if (!sendall(buf, used))
		fail(LOST, sizeof LOST - 1);
	used = 0;
}

static void put(char c)
{
	if (used == sizeof buf)
		flush();
	buf[used++] = c;
}

/* a field of the request: what it is, its text, a zero byte */
static void field(char kind, const char *text)
{
	put(kind);
	do
		put(*text);
	while (*text++);
}

/* writes n bytes; what nobody reads is lost, as it is with any program */
static void print(int fd, const char *from, word n)
{
	while (n > 0) {
		long r = call(WRITE, fd, (long)from, n, 0, 0, 0);
		if (r == -EINTR)
			continue;
		if (r <= 0)
			return;
		from += r;
		n -= r;
	}
}

static void sendstdin(void)
{
	long n;
	while ((n = readsome(0, buf, sizeof buf)) > 0)
		if (!sendall(buf, n))
			return;
	call(SHUTDOWN, sock, SHUT_WR, 0, 0, 0, 0);
}

static void request(char **argv, char **env)
{
	static char dir[4096];
	long n = call(GETCWD, (long)dir, sizeof dir, 0, 0, 0, 0);
	field('d', n > 0 && dir[0] == '/' ? dir : "");
	while (*argv)
		field('a', *argv++);
	while (*env)
		field('e', *env++);
	field('.', "");
	flush();
}

/* one frame of the answer: what it is, its length, its content */
static void answer(void)
{
	unsigned char head[5];
	for (word got = 0; got < sizeof head;) {
		long r = readsome(sock, (char *)head + got, sizeof head - got);
		if (r <= 0)
			fail(LOST, sizeof LOST - 1);
		got += r;
	}
	word left = (word)head[1] << 24 | (word)head[2] << 16 | (word)head[3] << 8 | head[4];
	if (head[0] == 'i')
		sendstdin();
	while (left > 0) {
		long r = readsome(sock, buf, left < sizeof buf ? left : sizeof buf);
		if (r <= 0)
			fail(LOST, sizeof LOST - 1);
		if (head[0] == 'x')
			leave((unsigned char)buf[0]);
		print(head[0] == 'o' ? 1 : 2, buf, r);
		left -= r;
	}
}

__attribute__((used, noreturn)) void begin(word *stack)
{
	static const struct {
		unsigned short family;
		char path[sizeof SOCKET];
	} address = { AF_UNIX, SOCKET };
	char **argv = (char **)(stack + 1);
	sock = call(SOCKET_, AF_UNIX, SOCK_STREAM, 0, 0, 0, 0);
	if (sock < 0 || call(CONNECT, sock, (long)&address, sizeof address, 0, 0, 0) < 0)
		fail(NONE, sizeof NONE - 1);
	request(stack[0] > 0 ? argv + 1 : argv, argv + stack[0] + 1);
	for (;;)
		answer();
}
