/*
 * pgrecall-client: `wal push` and `wal fetch` by the agent, for images without Python.
 *
 *   archive_command = '/shared/pgrecall-client push --socket /run/pgrecall/agent.sock "%p"'
 *   restore_command = '/shared/pgrecall-client fetch --socket /run/pgrecall/agent.sock %f "%p"
 *                      || { [ $? -eq 64 ] && exit 1; exit 200; }'
 *
 * docs/agent-protocol.md describes what is said on the socket; agent/asking.py is the same
 * in Python, and the two must stay alike. One file, linked statically where that can be
 * done: it runs in any image of its architecture, whatever C library is there, or none.
 *
 * Exit statuses: 0 done (push: durable in every required repository); 64 (fetch only):
 * proven absent; 74: no agent answered and there is no fallback; 62: ended by a signal;
 * 2: wrong words; otherwise the agent's, from 1 to 125. A push never ends with 64.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define PROTOCOL "pgrecall-agent/1"
#define ASIDE ".pgrecall-"
#define CONTROL "/global/pg_control"

enum {
	SUCCESS = 0,
	FAILED = 1,
	USAGE = 2,
	INTERRUPTED = 62,
	ABSENT = 64,
	SILENT = 74,
	HIGHEST_STATUS = 125,
	SILENCE_SECONDS = 1,
	LONGEST_SECONDS = 900, /* however alive the agent is */
	REQUEST_BYTES = 16 << 10,
	REPLY_BYTES = 64 << 10,
	PATH_BYTES = 2 * PATH_MAX,
	MOST_SOCKETS = 4,
};

struct options {
	const char *sockets[MOST_SOCKETS], *server, *config, *log_level, *fallback;
	int socket_count;
	int is_push;
	int is_ahead;
	const char *name; /* of the archived file, for fetch */
	const char *path; /* of the file to push, or the destination */
};

static const char USAGE_TEXT[] =
	"pgrecall-client: usage:\n"
	"  pgrecall-client push [OPTION]... PATH               for archive_command\n"
	"  pgrecall-client fetch [OPTION]... NAME DESTINATION  for restore_command\n"
	"  --socket PATH       the agent's socket; or PGRECALL_AGENT_SOCKET. Given several\n"
	"                      times, the first that is there and answers is asked\n"
	"  --server NAME       refuse an agent of another server\n"
	"  --fallback PROGRAM  run `PROGRAM wal push|fetch` when no agent answers, with\n"
	"  --config PATH, --server and --log-level LEVEL passed on\n"
	"  --ahead             have the fallback fetch ahead for the calls to come\n";

/* Why the agent was of no use; said only when nothing else can be done. */
static char silence[1024];

/* Whether 2 was open when we began: it may be a file of ours by now. */
static int has_stderr;

static void say(const char *text, size_t length)
{
	while (has_stderr && length > 0) {
		ssize_t written = write(STDERR_FILENO, text, length);
		if (written <= 0)
			return;
		text += written;
		length -= (size_t)written;
	}
}

static void fail_usage(const char *what, const char *word)
{
	char text[512];
	int length = snprintf(text, sizeof text, "pgrecall-client: %s%.300s\n", what, word);
	say(text, (size_t)length);
	say(USAGE_TEXT, sizeof USAGE_TEXT - 1);
	_exit(USAGE);
}

static void end(int number)
{
	(void)number;
	_exit(INTERRUPTED); /* the agent sees that we are gone, and tidies up */
}

__attribute__((format(printf, 1, 2))) static int silent(const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(silence, sizeof silence, format, arguments);
	va_end(arguments);
	return -1;
}

/* --- words ----------------------------------------------------------------------- */

static void add_socket(struct options *options, const char *path)
{
	if (options->socket_count == MOST_SOCKETS)
		fail_usage("there is a socket too many: ", path);
	options->sockets[options->socket_count++] = path;
}

static int take_option(struct options *options, char **words, int *at)
{
	static const char *const NAMES[] = {"--socket", "--server", "--config", "--log-level",
					    "--fallback"};
	const char *socket = NULL;
	const char **const values[] = {&socket, &options->server, &options->config,
				       &options->log_level, &options->fallback};
	if (strcmp(words[*at], "--ahead") == 0) {
		options->is_ahead = 1;
		return 1;
	}
	for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++) {
		size_t length = strlen(NAMES[i]);
		if (strncmp(words[*at], NAMES[i], length) != 0)
			continue;
		if (words[*at][length] == '=') {
			*values[i] = words[*at] + length + 1;
		} else if (words[*at][length] == '\0') {
			if (words[*at + 1] == NULL)
				fail_usage("a value is missing after ", words[*at]);
			*values[i] = words[++*at];
		} else {
			continue;
		}
		if (socket != NULL)
			add_socket(options, socket);
		return 1;
	}
	return 0;
}

static void parse(struct options *options, char **words)
{
	const char *files[3] = {NULL, NULL, NULL};
	int count = 0, is_only_files = 0;
	for (int at = 1; words[at] != NULL; at++) {
		if (!is_only_files && strcmp(words[at], "--") == 0) {
			is_only_files = 1;
		} else if (!is_only_files && words[at][0] == '-') {
			if (strcmp(words[at], "--help") == 0) {
				say(USAGE_TEXT, sizeof USAGE_TEXT - 1);
				_exit(USAGE); /* never 0: a command that only helps archives nothing */
			}
			if (!take_option(options, words, &at))
				fail_usage("there is no option ", words[at]);
		} else if (count < 3) {
			files[count++] = words[at];
		} else {
			fail_usage("there is a word too many: ", words[at]);
		}
	}
	if (count == 0)
		fail_usage("push or fetch is missing", "");
	options->is_push = strcmp(files[0], "push") == 0;
	if (!options->is_push && strcmp(files[0], "fetch") != 0)
		fail_usage("there is no command ", files[0]);
	if (count != (options->is_push ? 2 : 3))
		fail_usage(options->is_push ? "push takes PATH" : "fetch takes NAME DESTINATION", "");
	options->name = options->is_push ? "" : files[1];
	options->path = options->is_push ? files[1] : files[2];
	const char *known = getenv("PGRECALL_AGENT_SOCKET");
	if (options->socket_count == 0 && known != NULL)
		add_socket(options, known);
	for (int i = 0; i < options->socket_count; i++)
		if (*options->sockets[i] == '\0')
			options->socket_count = 0;
	if (options->socket_count == 0)
		fail_usage("--socket is missing", "");
	if (options->is_ahead && (options->is_push || options->fallback == NULL))
		fail_usage("--ahead needs fetch, and --fallback", "");
}

/* --- where the file is --------------------------------------------------------------- */

/* As os.path.abspath: without "." and "..", links are not followed. */
static int make_absolute(const char *path, char *made)
{
	char whole[PATH_BYTES];
	size_t length = 0;
	if (*path != '/') {
		if (getcwd(whole, sizeof whole) == NULL)
			return silent("the working directory is gone");
		length = strlen(whole);
	}
	if (length + 1 + strlen(path) + 1 > sizeof whole)
		return silent("the path is too long");
	whole[length++] = '/';
	strcpy(whole + length, path);
	size_t end = 0;
	for (char *rest = whole, *part; (part = strtok_r(rest, "/", &rest)) != NULL;) {
		if (strcmp(part, ".") == 0)
			continue;
		if (strcmp(part, "..") == 0) {
			while (end > 0 && made[--end] != '/')
				;
			continue;
		}
		made[end++] = '/';
		size_t size = strlen(part);
		memcpy(made + end, part, size);
		end += size;
	}
	if (end == 0)
		made[end++] = '/';
	made[end] = '\0';
	return 0;
}

static int is_data_directory(const char *path)
{
	char control[PATH_BYTES + sizeof CONTROL];
	struct stat found;
	if (*path == '\0')
		return 0;
	snprintf(control, sizeof control, "%s%s", path, CONTROL);
	return stat(control, &found) == 0;
}

/*
 * PGDATA of the file: by its path where it lies in pg_wal, else the working directory.
 * What is found there counts more than what is configured: a copy that was restored
 * beside production runs with production's configuration.
 */
static int find_data_directory(const char *path, char *found)
{
	if (make_absolute(path, found) != 0)
		return -1;
	char *slash = strrchr(found, '/');
	*slash = '\0';
	slash = strrchr(found, '/');
	if (slash != NULL && strcmp(slash, "/pg_wal") == 0) {
		*slash = '\0';
		if (is_data_directory(found))
			return 0;
	}
	if (getcwd(found, PATH_BYTES) == NULL)
		return silent("the working directory is gone");
	if (is_data_directory(found))
		return 0;
	return silent("%.300s is not in a data directory, nor is the working directory one", path);
}

static int open_directory(const char *path)
{
	int opened = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	return opened >= 0 ? opened : silent("cannot open %.300s: %s", path, strerror(errno));
}

static const char *last_part(const char *path)
{
	const char *slash = strrchr(path, '/');
	return slash == NULL ? path : slash + 1;
}

static int open_parent(const char *path)
{
	char directory[PATH_BYTES];
	size_t length = (size_t)(last_part(path) - path);
	if (length >= sizeof directory)
		return silent("the path is too long");
	memcpy(directory, path, length);
	directory[length] = '\0';
	return open_directory(length == 0 ? "." : directory);
}

/* --- the socket ------------------------------------------------------------------------ */

static int connect_to(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct timeval timeout = {.tv_sec = SILENCE_SECONDS};
	struct ucred agent;
	socklen_t size = sizeof agent;
	int directory = -1;
	int connected = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (connected < 0)
		return silent("no socket: %s", strerror(errno));
	setsockopt(connected, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
	setsockopt(connected, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
	if (strlen(path) < sizeof address.sun_path) {
		strcpy(address.sun_path, path);
	} else { /* too long for an address; by way of its directory it fits */
		directory = open_parent(path);
		int length = snprintf(address.sun_path, sizeof address.sun_path,
				      "/proc/self/fd/%d/%s", directory, last_part(path));
		if (directory < 0 || length >= (int)sizeof address.sun_path) {
			close(connected);
			return silent("the path of the socket is too long: %.300s", path);
		}
	}
	int refused = connect(connected, (struct sockaddr *)&address, sizeof address);
	int error = errno;
	if (directory >= 0)
		close(directory);
	if (refused) {
		close(connected);
		return silent("no agent answers at %.300s: %s", path, strerror(error));
	}
	/* Anybody may listen at a path; only root and our own user are believed. */
	if (getsockopt(connected, SOL_SOCKET, SO_PEERCRED, &agent, &size) != 0 ||
	    (agent.uid != 0 && agent.uid != geteuid())) {
		close(connected);
		return silent("the agent at %.300s is another user's, who is not believed", path);
	}
	return connected;
}

static int send_request(int connected, const char *message, size_t length, const int *passed)
{
	union {
		char room[CMSG_SPACE(2 * sizeof(int))];
		struct cmsghdr aligned;
	} control;
	struct iovec content = {.iov_base = (void *)message, .iov_len = length};
	struct msghdr header = {.msg_iov = &content, .msg_iovlen = 1};
	memset(&control, 0, sizeof control);
	header.msg_control = control.room;
	header.msg_controllen = sizeof control.room;
	struct cmsghdr *rights = CMSG_FIRSTHDR(&header);
	rights->cmsg_level = SOL_SOCKET;
	rights->cmsg_type = SCM_RIGHTS;
	rights->cmsg_len = CMSG_LEN(2 * sizeof(int));
	memcpy(CMSG_DATA(rights), passed, 2 * sizeof(int));
	if (sendmsg(connected, &header, MSG_NOSIGNAL) < 0)
		return silent("the agent does not listen: %s", strerror(errno));
	return 0;
}

/* The status of the last reply; -1 when the agent fell silent or refused. */
static int wait_for_end(int connected)
{
	static char reply[REPLY_BYTES + 1];
	struct timespec now, began;
	clock_gettime(CLOCK_MONOTONIC, &began);
	for (now = began; now.tv_sec - began.tv_sec < LONGEST_SECONDS;
	     clock_gettime(CLOCK_MONOTONIC, &now)) {
		ssize_t length = recv(connected, reply, REPLY_BYTES, 0);
		if (length < 0)
			return silent("the agent does not answer: %s",
				      errno == EAGAIN ? "silent for 1 s" : strerror(errno));
		if (length == 0)
			return silent("the agent has gone away");
		reply[length] = '\0';
		const char *end = reply + length;
		if (strcmp(reply, "accepted") == 0 || strcmp(reply, "working") == 0)
			continue;
		const char *first = reply + strlen(reply) + 1;
		if (first > end)
			return silent("the agent said something else");
		if (strcmp(reply, "refused") == 0)
			return silent("the agent refuses: %.900s", first);
		const char *facts = first + strlen(first) + 1;
		if (strcmp(reply, "done") != 0 || facts > end)
			return silent("the agent said something else");
		const char *text = facts + strlen(facts) + 1;
		size_t digits = strspn(first, "0123456789");
		if (text > end || digits == 0 || digits > 3 || first[digits] != '\0')
			return silent("the agent said something else");
		say(text, (size_t)(end - text));
		return atoi(first);
	}
	return silent("the agent still works after %d s", LONGEST_SECONDS);
}

static int add(char *message, size_t *length, const char *field)
{
	size_t size = strlen(field);
	if (*length + size + 1 > REQUEST_BYTES)
		return silent("the request is too long for the agent");
	if (*length > 0)
		message[(*length)++] = '\0';
	memcpy(message + *length, field, size);
	*length += size;
	return 0;
}

static int make_aside(const char *name, char *made, size_t room)
{
	unsigned char random[12];
	char digits[2 * sizeof random + 1];
	if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random)
		return silent("no random numbers: %s", strerror(errno));
	for (size_t i = 0; i < sizeof random; i++)
		snprintf(digits + 2 * i, 3, "%02x", random[i]);
	int length = snprintf(made, room, "%s" ASIDE "%s", name, digits);
	return length < (int)room ? 0 : silent("the name of the destination is too long");
}

/* The status; -1: the agent was of no use, and nothing was or will be delivered. */
static int ask(const struct options *options, const char *socket)
{
	static char pgdata[PATH_BYTES], message[REQUEST_BYTES];
	char aside[NAME_MAX + 1] = "";
	const char *name = last_part(options->path);
	size_t length = 0;
	if (find_data_directory(options->path, pgdata) != 0)
		return -1;
	if (!options->is_push && make_aside(name, aside, sizeof aside) != 0)
		return -1;
	if (add(message, &length, PROTOCOL) != 0 ||
	    add(message, &length, options->is_push ? "push" : "fetch") != 0 ||
	    add(message, &length, options->server == NULL ? "" : options->server) != 0 ||
	    add(message, &length, pgdata) != 0 || add(message, &length, options->path) != 0)
		return -1;
	if (!options->is_push &&
	    (add(message, &length, options->name) != 0 || add(message, &length, aside) != 0))
		return -1;
	int passed[2] = {open_directory(pgdata), open_parent(options->path)};
	if (passed[0] < 0 || passed[1] < 0)
		return -1;
	int connected = connect_to(socket);
	if (connected < 0)
		return -1;
	int status = send_request(connected, message, length, passed);
	if (status == 0)
		status = wait_for_end(connected);
	/* Before the connection is closed: the agent removes what was not taken by then. */
	if (status == 0 && !options->is_push &&
	    renameat(passed[1], aside, passed[1], name) != 0)
		status = silent("what was delivered cannot be renamed: %s", strerror(errno));
	close(connected);
	/* After it is closed: what the agent writes from now on, it removes. */
	if (status < 0 && !options->is_push)
		unlinkat(passed[1], aside, 0);
	return status;
}

/* --- without an agent -------------------------------------------------------------------- */

static int fall_back(const struct options *options)
{
	const char *words[20];
	int count = 0;
	words[count++] = options->fallback;
	const char *const passed[][2] = {{"--config", options->config},
					 {"--server", options->server},
					 {"--log-level", options->log_level}};
	for (size_t i = 0; i < sizeof passed / sizeof *passed; i++) {
		if (passed[i][1] != NULL) {
			words[count++] = passed[i][0];
			words[count++] = passed[i][1];
		}
	}
	words[count++] = "wal";
	words[count++] = options->is_push ? "push" : "fetch";
	words[count++] = "--no-agent";
	if (options->is_ahead)
		words[count++] = "--ahead";
	words[count++] = "--";
	if (!options->is_push)
		words[count++] = options->name;
	words[count++] = options->path;
	words[count] = NULL;
	execvp(options->fallback, (char *const *)words);
	return errno;
}

int main(int count, char **words)
{
	struct options options = {0};
	static char text[2048];
	(void)count;
	const int ENDING[] = {SIGTERM, SIGINT, SIGHUP};
	has_stderr = fcntl(STDERR_FILENO, F_GETFD) != -1;
	for (size_t i = 0; i < sizeof ENDING / sizeof *ENDING; i++)
		signal(ENDING[i], end);
	/* The work is done whether anybody hears of it or not. */
	sighandler_t before = signal(SIGPIPE, SIG_IGN);
	parse(&options, words);
	int status = -1;
	for (int i = 0; status < 0 && i < options.socket_count; i++)
		status = ask(&options, options.sockets[i]);
	if (status == SUCCESS || (status == ABSENT && !options.is_push))
		return status;
	if (status > 0)
		return status > HIGHEST_STATUS || status == ABSENT ? FAILED : status;
	const char *level = options.log_level ? options.log_level : getenv("PGRECALL_LOG__LEVEL");
	if (level != NULL && strcmp(level, "debug") == 0) {
		int length = snprintf(text, sizeof text,
				      "DEBUG pgrecall-client: without an agent: %s\n", silence);
		say(text, (size_t)length);
	}
	int error = 0;
	signal(SIGPIPE, before);
	if (options.fallback != NULL)
		error = fall_back(&options);
	int length = snprintf(text, sizeof text, "pgrecall-client: %s\n", silence);
	if (error != 0)
		length += snprintf(text + length, sizeof text - (size_t)length,
				   "pgrecall-client: cannot run the fallback %.300s: %s\n",
				   options.fallback, strerror(error));
	say(text, (size_t)length);
	return SILENT;
}
