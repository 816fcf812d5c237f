"""The docker CLI says to arpanet's user what it says to the user of one engine.

One body, two backends: each scenario is run by a shell on c1, once against an engine that c1 has
for this test, once against three hosts. Exit codes, outputs and error words must be the same, line
by line, after normal() took out what must differ. What differs all the same stands in DIFFERENCES,
as the lines of a diff (- the engine, + arpanet), each with its reason; when such a difference is
gone its scenario fails too, and the entry can go.
"""

# ruff: noqa: E501 (commands and answers stand as they are)

from __future__ import annotations

import concurrent.futures
import difflib
import re
import shutil
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from lab import PATH, SLOW, Lab, cached_images

CLIS = {"docker28": "/usr/local/bin/docker", "docker20": "/usr/bin/docker"}

# What a shell on c1 does with a scenario: each command's output, errors and exit code into files.
DRIVER = r"""
docker() { timeout -k 1 "$MOST_S" "$CLI" "$@"; }
arpanet_lines="$WORK/lines"
rm -rf "$WORK/out" "$WORK/cwd"; mkdir -p "$WORK/out" "$WORK/cwd"; cd "$WORK/cwd"
BEGAN=$(date +%s.%N)
n=100
while IFS= read -r line <&9; do
    { eval "$line"; } >"$WORK/out/$n.1" 2>"$WORK/out/$n.2" </dev/null
    echo "$?" >"$WORK/out/$n.3"
    n=$((n + 1))
done 9<"$arpanet_lines"
"""

SCENARIOS = {
    "run": """
        docker run --name ann busybox echo hello
        docker run --name ann busybox echo hello
        docker run --name bob busybox sh -c 'echo out; echo err >&2; exit 7'
        docker run --name cyn busybox nosuchprogram
        docker run --name dan busybox /etc/passwd
        docker run --rm --name eve -e A=1 -w /tmp -u nobody busybox sh -c 'echo $A; pwd; id -un'
        echo piped | docker run --rm -i --name fay busybox cat
        docker run --rm --name gg --hostname box --add-host one:10.0.0.1 busybox sh -c 'hostname; grep one /etc/hosts'
        docker run --rm --name hh --read-only --tmpfs /t busybox sh -c 'touch /x; touch /t/x'
        docker run --rm --name ii --entrypoint echo busybox entry point
        docker run -d --name jj --label k=v busybox sleep 1000
        docker ps -a --format '{{.Names}} {{.Image}} {{.Command}} {{.Status}}'
        docker rm ann bob cyn dan
        docker rm jj
        docker rm -f jj
        docker run --name kk nosuchimage
        docker run --name kk --memory 1 busybox true
        docker run --name kk --memory lots busybox true
        docker run --name kk --runtime nosuch busybox true
        docker run --name kk --nosuchflag busybox true
        docker run --name kk -p 99999:1 busybox true
        docker run --name kk -p xx:yy busybox true
        docker run --name kk --network nosuch busybox true
        docker rm kk
        docker run --name kk --volumes-from nosuch busybox true
        docker run --name kk --link nosuch busybox true
        docker run --name net --network container:nosuch busybox true
        docker rm net
        docker run --name kk -v relative/path:/x busybox true
        docker run --name kk -v /x:relative busybox true
        docker run --name kk --mount type=bind,source=/nosuch/dir,target=/x busybox true
        docker run --name kk -w relative busybox true
        docker run --name kk --restart sometimes busybox true
        docker run --name kk --rm --restart always busybox true
        docker rm kk
        docker run --name kk --ulimit nosuch=1 busybox true
        docker run --name kk --cap-add NOSUCH busybox true
        docker run --name kk --device /dev/nosuch busybox true
        docker rm kk
        docker run --name kk --ip 10.1.2.3 busybox true
        docker rm kk
        docker run --name kk --pull never nosuchimage
        docker ps -a --format '{{.Names}} {{.Status}}'
        docker rm -f kk
    """,
    "create": """
        docker create --name ann busybox echo hi
        docker create --name ann busybox
        docker create --name ' ' busybox
        docker create --name ann/b busybox
        docker create --name -- busybox
        docker create --name xx busybox:nosuch
        docker create --name xx Busybox
        docker create --name xx
        docker create --name yy --cpus 100000 busybox
        docker create --name yy --memory 1k busybox
        docker create --name yy --memory 64m --memory-swap 32m busybox
        docker create --name yy --cpuset-cpus 999 busybox
        docker create --name yy --shm-size -1 busybox
        docker create --name yy -p 80:80:80:80 busybox
        docker create --name yy -p 0:99999 busybox
        docker create --name yy --expose xx busybox
        docker create --name yy --mac-address zz busybox
        docker create --name yy --network host --network-alias zz busybox
        docker create --name yy --pid container:nosuch busybox
        docker create --name yy --stop-signal NOSUCH busybox
        docker create --name yy --health-interval 1us --health-cmd true busybox
        docker create --name yy --isolation nosuch busybox
        docker create --name yy --platform nosuch/nosuch busybox
        docker create --name yy --storage-opt nosuch=1 busybox
        docker create --name yy --sysctl xx busybox
        docker create --name yy --security-opt nosuch=1 busybox
        docker create --name yy --env-file nosuch busybox
        docker create --name yy --oom-score-adj 5000 busybox
        docker create --name zz -it --cidfile cid busybox
        tr -d '[:xdigit:]' <cid | wc -c
        docker start -a ann
        docker start nosuch
        docker start ann nosuch
        docker wait ann
        docker ps -a --format '{{.Names}} {{.Status}}'
        docker rm ann zz
        docker rm yy
        docker rm ann nosuch
    """,
    "stop": """
        docker run -d --name ann busybox sh -c 'trap "exit 3" TERM; trap "exit 5" USR2; while :; do sleep 0.1; done'
        until docker top ann -o pid,comm | grep -q 'sleep$'; do :; done
        docker stop ann
        docker stop ann
        docker wait ann
        docker start ann
        docker start ann
        docker restart -t 1 ann
        until docker top ann -o pid,comm | grep -q 'sleep$'; do :; done
        docker kill -s USR2 ann
        docker wait ann
        docker kill ann
        docker restart ann
        docker kill ann
        docker wait ann nosuch
        docker start ann
        docker pause ann
        docker pause ann
        docker ps -a --format '{{.Names}} {{.Status}}'
        docker exec ann true
        docker stop -t 0 ann
        docker unpause ann
        docker pause ann
        docker start ann
        docker pause ann
        docker unpause ann nosuch
        docker kill -s NOSUCH ann
        docker kill -s 99 ann
        docker stop nosuch
        docker kill nosuch
        docker restart nosuch
        docker pause nosuch
        docker unpause nosuch
        docker wait nosuch
        docker stop
        docker rm nosuch
        docker rm -f nosuch
        docker rm ann
        docker rm -f ann
    """,
    "ps": """
        docker create --name one --label a=1 --label b=2 busybox sleep 1000
        docker run -d --name two --label a=2 -p 8081:80 --expose 90 busybox sleep 1000
        docker run --name three busybox sh -c 'exit 3'
        docker create --name four -v named:/v busybox true
        docker ps
        docker ps -a
        docker ps -aq --no-trunc
        docker ps -a --no-trunc --format '{{.ID}} {{.Names}} {{.Ports}}'
        docker ps -a --format 'table {{.Names}}\\t{{.Label "a"}}'
        docker ps -a --filter name=four --format '{{.Labels}}|{{.Mounts}}|{{.Networks}}|{{.LocalVolumes}}|{{.State}}'
        docker ps -a --format '{{json .Command}}'
        docker ps -a --format '{{.NoSuch}}'
        docker ps -l --format '{{.Names}}'
        docker ps -n 2 --format '{{.Names}}'
        docker ps -as --format '{{.Names}} {{.Size}}'
        docker ps -a --filter name=o --format '{{.Names}}'
        docker ps -a --filter name=^one$ --format '{{.Names}}'
        docker ps -a --filter name=^/two$ --format '{{.Names}}'
        docker ps -a --filter status=exited --format '{{.Names}}'
        docker ps -a --filter status=created --filter status=running --format '{{.Names}}'
        docker ps -a --filter exited=3 --format '{{.Names}}'
        docker ps -a --filter label=a --format '{{.Names}}'
        docker ps -a --filter label=a=2 --format '{{.Names}}'
        docker ps -a --filter label=a --filter label=b=2 --format '{{.Names}}'
        docker ps -a --filter ancestor=busybox --format '{{.Names}}'
        docker ps -a --filter ancestor=nosuch --format '{{.Names}}'
        docker ps -a --filter volume=named --format '{{.Names}}'
        docker ps -a --filter volume=/v --format '{{.Names}}'
        docker ps -a --filter network=bridge --format '{{.Names}}'
        docker ps -a --filter publish=8081/tcp --format '{{.Names}}'
        docker ps -a --filter publish=80 --format '{{.Names}}'
        docker ps -a --filter expose=90 --format '{{.Names}}'
        docker ps -a --filter health=none --format '{{.Names}}'
        docker ps -a --filter is-task=false --format '{{.Names}}'
        docker ps -a --filter before=two --format '{{.Names}}'
        docker ps -a --filter since=two --format '{{.Names}}'
        docker ps -a --filter before=nosuch
        docker ps -a --filter since=nosuch
        docker ps -a --filter status=nosuch
        docker ps -a --filter health=nosuch
        docker ps -a --filter exited=x
        docker ps -a --filter publish=x
        docker ps -a --filter nosuch=x
        docker ps -a --filter is-task=x
        docker ps -n xx
        docker rm -f -v one two three four
        docker volume rm named
        docker ps -a
    """,
    "inspect": """
        docker create --name ann --label x=y -e A=b -p 8081:80 -v /tmp:/t:ro --restart on-failure:3 --memory 64m busybox echo hi
        docker volume create vv
        docker inspect ann
        docker inspect --format '{{.Name}} {{.Config.Image}} {{.State.Status}}' ann
        docker inspect --format '{{json .Config}}' ann
        docker inspect --format '{{json .NetworkSettings}}' ann
        docker inspect -s --format '{{.SizeRw}}' ann
        docker inspect --format '{{.NoSuch}}' ann
        docker inspect --format '{{nosuch' ann
        docker inspect nosuch
        docker inspect ann nosuch
        docker inspect --type container nosuch
        docker inspect --type image nosuch
        docker inspect --type network nosuch
        docker inspect --type volume nosuch
        docker inspect --type nosuch nosuch
        docker inspect --type plugin nosuch
        docker inspect --type image --format '{{.RepoTags}}' busybox web
        docker inspect --format '{{.Name}}' bridge vv
        docker image inspect busybox
        docker image inspect nosuch
        docker network inspect bridge
        docker network inspect nosuch
        docker volume inspect vv
        docker volume inspect vv nosuch
        docker container inspect --format '{{.Id}}' $(docker ps -aq)
        docker container inspect nosuch
        docker rm ann
        docker volume rm vv
    """,
    "logs": """
        docker run --name ann busybox sh -c 'echo 1; echo two >&2; sleep 2; echo 3'
        docker logs ann
        docker logs --tail 1 ann
        docker logs --tail 0 ann
        docker logs --tail xx ann
        docker logs -t ann
        docker logs --details ann
        docker logs -f ann
        docker logs --since 1h ann
        docker logs --since 2000-01-01T00:00:00 ann
        docker logs --until 1h ann
        docker logs --since nosuch ann
        docker logs nosuch
        docker run -d --name bob busybox sh -c 'echo a; sleep 0.4; echo b'
        docker logs -f bob
        docker run --name tt -t busybox echo tty
        docker logs tt
        docker run --name nn --log-driver none busybox echo hi
        docker logs nn
        docker rm ann bob tt nn
    """,
    "exec": """
        docker run -d --name ann busybox sleep 1000
        docker exec ann echo hi
        docker exec ann sh -c 'echo err >&2; exit 9'
        docker exec -e X=1 -w /tmp -u nobody ann sh -c 'echo $X; pwd; id -un'
        echo piped | docker exec -i ann cat
        docker exec -d ann touch /made
        docker exec ann nosuchprogram
        docker exec ann /etc/passwd
        docker exec -w /nosuch ann true
        docker exec -u nosuch ann true
        docker exec -t ann true
        docker exec --privileged ann true
        docker exec ann
        docker exec nosuch true
        docker top ann | awk '{print $1, $NF}'
        docker top ann -o comm,args
        docker top ann -o nosuch
        docker stop -t 0 ann
        docker exec ann true
        docker top ann
        docker top nosuch
        docker attach ann
        docker attach nosuch
        docker rm ann
        docker create -i --name bob busybox cat
        echo hello | docker start -ai bob
        docker start -ai nosuch
        docker run -d --name cyn busybox sh -c 'sleep 5; echo bye; exit 4'
        docker attach --no-stdin cyn
        docker run -d --name dan -i busybox sh -c 'read x; echo got $x'
        echo word | docker attach dan >/dev/null
        docker wait dan
        docker logs dan
        docker rm bob cyn dan
    """,
    "cp": """
        docker create --name ann busybox sh -c 'cat /dir/sub/two; echo new >/made'
        mkdir -p dir/sub; echo one >dir/one; echo two >dir/sub/two
        docker cp dir ann:/
        docker cp dir/one ann:/etc/passwd
        docker cp ann:/dir copied
        find copied | sort
        docker cp ann:/dir/one - | tar t
        tar c -C dir one | docker cp - ann:/tmp
        docker cp ann:/tmp/one got
        cat got
        docker cp ann:/nosuch .
        docker cp nosuch ann:/
        docker cp dir ann:/no/such/
        docker cp dir ann:/etc/passwd
        docker cp ann:/x nosuch:/x
        docker cp nosuch:/x .
        docker cp dir nosuch:/x
        docker cp dir dir
        docker cp ann:/dir /no/such/dir
        docker start -a ann
        docker diff ann | sort
        docker diff nosuch
        docker export ann | tar t made dir/sub/two
        docker export -o file ann
        docker export nosuch
        docker export nosuch -o file2
        docker cp -L ann:/bin/ls ls
        wc -c ls | grep -c ' ls'
        docker rm ann
    """,
    "commit": """
        docker create --name ann busybox sh -c 'echo kept >/kept'
        docker start -a ann
        docker commit -m words -a me -c 'CMD ["cat","/kept"]' -c 'ENV A=1' -c 'LABEL b=2' ann made:1
        docker inspect --format '{{.Comment}} {{.Author}} {{.Config.Cmd}}' made:1
        docker inspect --format '{{.Config.Env}} {{.Config.Labels}}' made:1
        docker run --name bob made:1
        docker history --format '{{.CreatedBy}}|{{.Comment}}' made:1
        docker commit ann
        docker images -q -f dangling=true
        docker commit nosuch made:2
        docker commit ann Made
        docker commit -c 'NOSUCH x' ann made:2
        docker image prune -f
        docker rename ann cyn
        docker rename cyn cyn
        docker rename cyn bob
        docker rename nosuch xx
        docker rename cyn 'a b'
        docker rename cyn ''
        docker ps -a --format '{{.Names}} {{.Image}}'
        docker update --memory 32m --memory-swap 32m cyn
        docker inspect --format '{{.HostConfig.Memory}}' cyn
        docker update --restart always cyn
        docker update --cpu-shares 512 cyn nosuch
        docker update --memory 1 cyn
        docker update --restart nosuch cyn
        docker update cyn
        docker update nosuch --memory 32m
        docker rmi made:1
        docker rm cyn bob
        docker rmi made:1
        docker rmi made:1
    """,
    "port": """
        docker run -d --name ann -p 8081:80 -p 127.0.0.1:8082:81/udp -p 90 busybox sleep 1000
        docker port ann | sort
        docker port ann 80
        docker port ann 81/udp
        docker port ann 82
        docker port ann 80/nosuch
        docker port nosuch
        docker inspect --format '{{json .HostConfig.PortBindings}}' ann
        docker stats --no-stream --format '{{.Name}} {{.PIDs}}' ann
        docker stats --no-stream nosuch
        docker rm -f ann
    """,
    "links": """
        docker run -d --name ann -e SECRET=word --expose 81 busybox sleep 1000
        docker create --name bob --link ann:db busybox true
        docker inspect --format '{{.HostConfig.Links}}' bob
        docker run --rm --name cyn --link ann:db busybox sh -c 'env | grep ^DB_ | sort'
        docker run --rm --name cyn --link ann busybox sh -c 'env | grep ^ANN_ | sort'
        docker run --rm --name cyn --link ann:db busybox sh -c 'grep -o "[[:space:]]db .*" /etc/hosts'
        docker run --name cyn --link ann:xx:yy busybox true
        docker run --name cyn --link nosuch:db busybox true
        docker stop -t 0 ann
        docker start bob
        docker rm --link bob/db
        docker rm --link bob/nosuch
        docker rm --link nosuch/db
        docker rm -f ann bob cyn
    """,
    "events": """
        docker create --name ann --label x=y busybox true
        docker start -a ann
        docker rename ann bob
        docker volume create vv
        docker network create nn
        docker network rm nn
        docker volume rm vv
        docker rm bob
        ENDED=$(date +%s.%N)
        docker events --since $BEGAN --until $ENDED --filter type=container --format '{{.Type}} {{.Action}} {{.Actor.Attributes.name}}'
        docker events --since $BEGAN --until $ENDED --filter type=container --filter event=create
        docker events --since $BEGAN --until $ENDED --filter container=bob --format '{{.Action}}'
        docker events --since $BEGAN --until $ENDED --filter type=volume --format '{{.Type}} {{.Action}}'
        docker events --since $BEGAN --until $ENDED --filter type=network --filter event=create --format '{{.Type}} {{.Action}} {{.Actor.Attributes.name}}'
        docker events --since $BEGAN --until $ENDED --filter label=x=y --format '{{.Action}}'
        docker events --since $BEGAN --until $ENDED --filter image=busybox --filter event=die --format '{{.Actor.Attributes.exitCode}}'
        docker events --since nosuch
        docker events --since $BEGAN --until $ENDED --filter type=nosuch
        docker events --since $ENDED --until $BEGAN
    """,
    "images": """
        docker images
        docker image ls --no-trunc --digests
        docker images -q
        docker images busy*
        docker images nosuch
        docker images --format '{{.Repository}}:{{.Tag}} {{.ID}}'
        docker images --filter dangling=true
        docker images --filter before=web --format '{{.Repository}}'
        docker images --filter since=busybox --format '{{.Repository}}'
        docker images --filter reference='*:latest' --format '{{.Repository}}'
        docker images --filter label=nosuch
        docker images --filter nosuch=x
        docker images --filter before=nosuch
        docker images --filter dangling=x
        docker images -a -q
        docker history busybox
        docker history --no-trunc -q busybox
        docker history nosuch
        docker tag busybox one:1
        docker tag busybox two
        docker tag nosuch xx
        docker tag busybox Bad
        docker tag busybox 127.0.0.1:5/x/y:zz
        docker images --format '{{.Repository}}:{{.Tag}}' | sort
        docker create --name ann one:1
        docker rmi one:1
        docker tag web kept
        docker rmi web
        docker tag kept web
        docker rmi kept
        docker rmi nosuch two
        docker rmi -f nosuch
        docker rmi one:1
        docker rmi $(docker images -q one)
        docker rm ann
        docker rmi 127.0.0.1:5/x/y:zz
        docker rmi 127.0.0.1:5/x/y:zz
        docker images --format '{{.Repository}}:{{.Tag}}' | sort
        docker image rm
    """,
    "save": """
        docker save busybox | tar t | grep -c .
        docker save -o both busybox web
        tar xf both manifest.json; grep -o '"RepoTags":[^]]*' manifest.json | sort
        docker save nosuch -o no
        docker save busybox nosuch -o no
        docker tag busybox copy:1
        docker save -o copy copy:1
        docker rmi copy:1
        docker load -i copy
        docker load -q -i copy
        docker load <copy
        docker load -i nosuch
        echo bad | docker load
        docker images --format '{{.Repository}}:{{.Tag}}' | sort
        docker run --rm --name ann copy:1 echo loaded
        docker rmi copy:1
        docker create --name ann busybox true
        docker export ann -o root.tar
        docker import -m words -c 'CMD echo cmd' root.tar made:1
        docker inspect --format '{{.Comment}} {{.Config.Cmd}}' made:1
        docker run --rm --name bob made:1
        cat root.tar | docker import - made:2
        docker import nosuch
        docker import root.tar Bad
        echo bad | docker import -c 'NOSUCH x' - made:3
        docker import http://127.0.0.1:5/x made:3
        docker images made --format '{{.Repository}}:{{.Tag}}' | sort
        docker rmi made:1 made:2 >/dev/null
        docker rm ann
    """,
    "build": """
        mkdir dir; echo content >dir/file
        printf 'FROM busybox\\nCOPY file /file\\nRUN cat /file >/ran\\nENV A=b\\nCMD ["cat","/ran"]\\n' >dir/Dockerfile
        docker build -t made dir
        docker build -q -t made dir
        docker run --rm --name ann made
        docker build --label x=y --build-arg NOSUCH=1 -t made:2 dir
        docker images --format '{{.Repository}}:{{.Tag}}' --filter label=x=y
        docker history --format '{{.CreatedBy}}' made
        printf 'FROM busybox\\nRUN exit 3\\n' | docker build --rm -
        printf 'FROM nosuch:never\\n' | docker build --force-rm -
        printf 'NOSUCH x\\n' | docker build -
        printf 'FROM busybox AS one\\nRUN echo xx >/x\\nFROM busybox\\nCOPY --from=one /x /y\\n' | docker build -q -
        printf 'FROM busybox\\nCOPY nosuch /\\n' >dir/Other
        docker build -f dir/Other dir
        docker build -f dir/nosuch dir
        docker build nosuch
        docker build --target nosuch dir
        docker build -t Bad dir
        docker rm $(docker ps -aq --filter ancestor=busybox) | wc -l
        docker rmi made made:2 >/dev/null
        docker image prune -f >/dev/null
        docker builder prune -f
        docker images --format '{{.Repository}}:{{.Tag}}'
    """,
    "registry": """
        docker pull 127.0.0.1:5/nosuch:1
        docker pull -q 127.0.0.1:5/nosuch
        docker pull 127.0.0.1:5/nosuch@sha256:0000000000000000000000000000000000000000000000000000000000000000
        docker pull -a 127.0.0.1:5/nosuch
        docker pull Bad
        docker pull nosuch
        docker pull --platform nosuch/nosuch 127.0.0.1:5/nosuch
        docker push nosuch
        docker tag busybox 127.0.0.1:5/x
        docker push 127.0.0.1:5/x
        docker push -q 127.0.0.1:5/x
        docker push 127.0.0.1:5/x:nosuch
        docker push -a 127.0.0.1:5/nosuch
        docker rmi 127.0.0.1:5/x
        docker search nosuch
        docker search 127.0.0.1:5/nosuch
        docker login -u ann -p bob 127.0.0.1:5
        docker logout 127.0.0.1:5
        docker run --name ann 127.0.0.1:5/nosuch
        docker create --name ann --pull always busybox
    """,
    "networks": """
        docker network ls
        docker network ls --filter driver=bridge --format '{{.Name}}'
        docker network create nn
        docker network create nn
        docker network create --subnet 10.99.0.0/24 --gateway 10.99.0.1 --label x=y --internal mm
        docker network ls --no-trunc --format '{{.ID}} {{.Name}} {{.Driver}} {{.Scope}} {{.Internal}}'
        docker network ls --filter name=n -q
        docker network ls --filter label=x=y --format '{{.Name}}'
        docker network ls --filter type=custom --format '{{.Name}}'
        docker network ls --filter dangling=true --format '{{.Name}}'
        docker network ls --filter nosuch=x
        docker network inspect mm
        docker network inspect --format '{{.Id}}' nn mm
        docker run -d --name ann --network nn --network-alias al busybox sleep 1000
        docker network inspect --format '{{range .Containers}}{{.Name}}{{end}}' nn
        docker network connect mm ann
        docker network connect --ip 10.99.0.99 mm ann
        docker network connect bridge ann
        docker inspect --format '{{range $k, $v := .NetworkSettings.Networks}}{{$k}} {{$v.Aliases}} {{end}}' ann
        docker ps --filter network=mm --format '{{.Names}}'
        docker network rm mm
        docker network disconnect mm ann
        docker network disconnect mm ann
        docker network disconnect nn nosuch
        docker network disconnect nosuch ann
        docker network connect nosuch ann
        docker network connect nn nosuch
        docker network disconnect -f nn ann
        docker network disconnect -f nn nosuch
        docker network rm nn nosuch
        docker rm -f ann
        docker create --name bob --network mm --ip 10.99.0.7 busybox true
        docker create --name cyn --network mm --ip 10.98.0.7 busybox true
        docker network rm mm
        docker network rm mm
        docker start -a bob
        docker rm bob cyn
        docker network create --subnet nosuch oo
        docker network create --subnet 10.97.0.0/24 --gateway 10.1.1.1 oo
        docker network create 'a b'
        docker network create bridge
        docker network rm bridge
        docker network rm host
        docker network create -d host oo
        docker network create -d macvlan -o parent=nosuch0 oo
        docker network create pp
        docker network prune -f | sort
        docker network prune -f
        docker network prune -f --filter nosuch=x
        docker network ls --format '{{.Name}}'
    """,
    "volumes": """
        docker volume create vv
        docker volume create vv
        docker volume create --label x=y ww
        docker volume create 'a b'
        docker volume create -o type=nosuch xx
        docker volume rm xx
        docker volume ls
        docker volume ls -q --filter label=x=y
        docker volume ls -q --filter name=v
        docker volume ls -q --filter driver=local
        docker volume ls -q --filter dangling=true
        docker volume ls -q --filter nosuch=x
        docker volume ls -q --filter dangling=x
        docker volume ls --format '{{.Name}} {{.Driver}} {{.Scope}} {{.Labels}}'
        docker volume inspect --format '{{.Name}} {{.Labels}}' vv ww
        docker run --rm --name ann -v vv:/v busybox sh -c 'echo kept >/v/file'
        docker run --rm --name ann -v vv:/v:ro busybox sh -c 'cat /v/file; touch /v/x'
        docker create --name bob -v vv:/v -v /anonymous busybox
        docker inspect --format '{{range .Mounts}}{{.Type}} {{.Destination}} {{.RW}}{{println}}{{end}}' bob | sort
        docker volume rm vv
        docker volume rm vv nosuch
        docker volume rm nosuch
        docker volume rm -f nosuch
        docker volume prune -f
        docker volume ls -q
        docker rm bob
        docker volume prune -f | grep -c .
        docker volume prune -f
        docker volume prune -f --filter nosuch=x
        docker volume create ww
        docker volume rm ww
        docker create --name cyn -v new:/n busybox
        docker volume ls -q
        docker rm -v cyn
        docker volume rm new
        docker create --name cyn --mount type=volume,source=mm,target=/m busybox
        docker rm cyn
        docker volume rm mm
        docker create --name cyn --mount type=nosuch,target=/m busybox
        docker create --name cyn -v 'ann bob:/x' busybox
        docker create --name cyn -v xx:/x -v yy:/x busybox
        docker volume rm -f xx yy
    """,
    "prune": """
        docker create --name ann busybox true
        docker run -d --name bob busybox sleep 1000
        docker container prune -f --filter label=nosuch
        docker container prune -f
        docker container prune -f
        docker container prune -f --filter nosuch=x
        docker image prune -f
        docker image prune -f --filter until=nosuch
        docker tag busybox one:1
        docker rmi -f one:1
        docker network create nn
        docker system df --format '{{.Type}} {{.TotalCount}} {{.Active}}'
        docker system df -v | grep -c .
        docker system df
        docker create --name cyn busybox true
        docker volume create vv
        docker system prune -f
        docker system prune -f --volumes
        docker volume ls -q
        docker network ls --format '{{.Name}}'
        docker builder prune -f
        docker builder prune -a -f
        docker rm -f bob
        docker volume prune -f
        docker image prune -f --filter nosuch=x
        docker system prune -f --filter nosuch=x
    """,
    "system": """
        docker info >/dev/null
        docker info --format '{{.Containers}} {{.ContainersRunning}} {{.Images}} {{.OSType}}'
        docker info --format '{{.Swarm.LocalNodeState}} {{.CgroupDriver}} {{.DefaultRuntime}}'
        docker info --format '{{.Name}}'
        docker info --format '{{.Driver}} {{.ServerVersion}}'
        docker info --format '{{.NoSuch}}'
        docker version >/dev/null
        docker version --format '{{.Client.Version}} {{.Client.APIVersion}}'
        docker version --format '{{.Server.Version}} {{.Server.APIVersion}} {{.Server.MinAPIVersion}}'
        docker version --format '{{.Server.Os}}/{{.Server.Arch}} {{.Server.KernelVersion}}'
        docker version --format '{{.Server.Platform.Name}}' | grep -o 'arpanet.*'
        docker version --format '{{.Server.GitCommit}}{{.Server.GoVersion}}' | grep -c .
        docker version --format '{{range .Server.Components}}{{println .Name}}{{end}}'
        docker version --format '{{(index .Server.Components 0).Details.Experimental}}'
        docker system info --format '{{.OSType}}'
        docker nosuch
        docker container nosuch
        docker ps extra
        docker checkpoint ls nosuch
        docker context ls --format '{{.Name}}'
    """,
    "swarm": """
        docker swarm join-token worker
        docker swarm leave
        docker swarm update --autolock
        docker service ls
        docker service create busybox
        docker node ls
        docker node inspect self
        docker stack ls
        docker secret ls
        docker config ls
        docker inspect --type service nosuch
        docker inspect --type secret nosuch
        docker plugin ls
        docker plugin install --grant-all-permissions nosuch
        docker plugin inspect nosuch
        docker plugin rm nosuch
        docker plugin enable nosuch
    """,
    "clean": """
        docker ps -a --format '{{.Names}} {{.Status}}'
        docker images --format '{{.Repository}}:{{.Tag}}'
        docker volume ls -q
        docker network ls --format '{{.Name}}'
    """,
}


class Difference(NamedTuple):
    """What arpanet says otherwise than an engine, to which command and why.

    lines: the diff: - of the engine, + of arpanet, ! before what is an error's words.
    cli: of one client only, else of all.
    """

    command: str
    lines: str
    reason: str
    cli: str = ""


NO_SWARM = (
    'Error response from daemon: This node is not a swarm manager. Use "docker swarm init" or '
    '"docker swarm join" to connect this node to swarm and try again.'
)
NO_PLUGIN = 'Error response from daemon: plugin "nosuch" not found'
NO_REGISTRY = (
    "Error response from daemon: error resolving plugin reference: failed to do request: "
    'Head "https://registry-1.docker.io/v2/library/nosuch/manifests/latest": dial tcp: '
    "lookup registry-1.docker.io on 127.0.0.1:53: read udp 127.0.0.1:PORT->127.0.0.1:53: read: "
    "connection refused"
)


def refusal(request: str) -> str:
    """Return the words about a request that is not offered."""
    return (
        f"Error response from daemon: {request} is not supported by arpanet VERSION; "
        "use it on the host itself: docker -H unix:///var/run/docker.sock …"
    )


REFUSED = [
    (NO_SWARM, "docker swarm join-token worker", "GET /swarm"),
    (NO_SWARM, "docker swarm update --autolock", "GET /swarm"),
    (NO_SWARM, "docker service ls", "GET /services"),
    (NO_SWARM, "docker service create busybox", "POST /services/create"),
    (NO_SWARM, "docker node ls", "GET /nodes"),
    (NO_SWARM, "docker stack ls", "GET /services"),
    (NO_SWARM, "docker secret ls", "GET /secrets"),
    (NO_SWARM, "docker config ls", "GET /configs"),
    (NO_SWARM, "docker inspect --type service nosuch", "GET /services/nosuch"),
    (NO_SWARM, "docker inspect --type secret nosuch", "GET /secrets/nosuch"),
    (
        NO_REGISTRY,
        "docker plugin install --grant-all-permissions nosuch",
        "GET /plugins/privileges",
    ),
    (NO_PLUGIN, "docker plugin enable nosuch", "POST /plugins/nosuch/enable"),
]

DIFFERENCES = [
    *(
        Difference(
            "docker rm net",
            f"-net\n-exit 0\n+! {words}: No such container: net\n+exit 1",
            "what shares another's network goes to its host, so without one it is not created",
            cli,
        )
        for cli, words in (("docker28", "Error response from daemon"), ("docker20", "Error"))
    ),
    Difference(
        "docker run --name net --network container:nosuch busybox true",
        "+! See 'docker run --help'.",
        "the client says so after an error of create, which this is, and not after one of start",
        "docker20",
    ),
    Difference(
        "docker ps -a --filter name=four --format '{{.Labels}}|{{.Mounts}}|{{.Networks}}|{{.LocalVolumes}}|{{.State}}'",
        """
        -|named|bridge|1|created
        +arpanet.volumes=named|named|bridge|1|created
        """,
        "a label records which volumes are the container's",
    ),
    Difference(
        "docker inspect ann",
        """
        +  },
        +  "Host": {
        +  "Name": "HOST",
        +  "IP": "IP"
        """,
        "inspect says on which host a container is",
    ),
    Difference(
        "docker inspect ann nosuch",
        """
        +  },
        +  "Host": {
        +  "Name": "HOST",
        +  "IP": "IP"
        """,
        "inspect says on which host a container is",
    ),
    Difference(
        "docker run --rm --name cyn --link ann:db busybox sh -c 'grep -o \"[[:space:]]db .*\" /etc/hosts'",
        """
        -\tdb ID0 ann
        -exit 0
        +exit 1
        """,
        "each name of a link has a line of its own in /etc/hosts",
    ),
    Difference(
        "docker start bob",
        """
        -! Error response from daemon: Cannot link to a non running container: /ann AS /bob/db
        -! Error: failed to start containers: bob
        -exit 1
        +bob
        +exit 0
        """,
        "a link leads to its target whenever that runs, so it need not run yet",
    ),
    Difference(
        "docker rm --link bob/db",
        """
        -bob/db
        -exit 0
        +! Error response from daemon: taking a link off is not supported: remove bob and run it again without
        +exit 1
        """,
        "a link is a part of the container that was made with it",
    ),
    Difference(
        "docker events --since $BEGAN --until $ENDED --filter type=container --filter event=create",
        """
        -TIME container create ID0 (image=busybox, name=ann, x=y)
        +TIME container create ID0 (host=HOST, image=busybox, name=ann, x=y)
        """,
        "an event says on which host it was",
    ),
    Difference(
        "docker events --since $BEGAN --until $ENDED --filter type=network --filter event=create --format '{{.Type}} {{.Action}} {{.Actor.Attributes.name}}'",
        """
        +network create nn
        +network create nn
        """,
        "a network is made on each host, and each host says so",
    ),
    Difference(
        "docker info --format '{{.Name}}'",
        """
        -c1
        +arpanet
        """,
        "it is not one machine",
    ),
    Difference(
        "docker version --format '{{.Server.Platform.Name}}' | grep -o 'arpanet.*'",
        """
        -exit 1
        +arpanet VERSION (3 hosts)
        +exit 0
        """,
        "so that a person sees what answers",
    ),
    Difference(
        "docker version --format '{{range .Server.Components}}{{println .Name}}{{end}}'",
        """
        -containerd
        -runc
        -docker-init
        +arpanet
        +Host h1
        +Host h2
        +Host h3
        """,
        "each host's engine is a component; what they consist of differs",
    ),
    *(
        Difference(command, f"-! {lacks}\n+! {refusal}", "swarm and plugins are not offered", cli)
        for command, cli, lacks, refusal in (
            (
                "docker node inspect self",
                "docker28",
                NO_SWARM,
                refusal("GET /nodes"),
            ),
            (
                "docker node inspect self",
                "docker20",
                f"Status: {NO_SWARM}, Code: 1",
                f"Status: {refusal('GET /nodes')}, Code: 1",
            ),
            (
                "docker plugin rm nosuch",
                "docker28",
                NO_PLUGIN,
                refusal("DELETE /plugins/nosuch"),
            ),
            (
                "docker plugin rm nosuch",
                "docker20",
                "Error: No such plugin: nosuch",
                refusal("DELETE /plugins/nosuch"),
            ),
            *((command, "", lacks, refusal(request)) for lacks, command, request in REFUSED),
        )
    ),
]


class Said(NamedTuple):
    """A command and all it said, in lines."""

    command: str
    lines: list[str]


SHAPES = [
    (r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z| ?[+-]\d\d:?\d\d( [A-Z]+)?)?", "TIME"),
    (r"(Less than|About) an? (second|minute|hour)( ago)?", "AGO"),
    (r"\b\d+ (seconds?|minutes?|hours?|days?|weeks?|months?|years?)( ago)?", "AGO"),
    (r"\b([\w.-]+)@h[1-3],\1(?=\s)", r"\1"),  # both names, by ps --no-trunc
    (r"@h[1-3]\b", ""),
    (r"\barpanet[ /]\d+\.\d+\.\d+", "arpanet VERSION"),
    (r"(?<=host=)h[1-3]\b|(?<=\")h[1-3](?=\")", "HOST"),
    (r"contract-(engine|arpanet)", "contract"),
    (r"\b\d{10}\.\d+\b", "TIME"),
    (r"\b\d+(\.\d+)?(e[+-]\d+)? ?([kMGT]i?)?B\b", "SIZE"),
    (r"\b172\.\d+\.\d+\.\d+|\b192\.168\.\d+\.\d+|\b198\.1[89]\.\d+\.\d+", "IP"),
    (r"\b([0-9a-f]{2}:){5}[0-9a-f]{2}\b", "MAC"),
    (r"(?<=:)(3[2-9]\d{3}|[45]\d{4}|6[0-5]\d{3})\b", "PORT"),
    (r"^.* level=error msg=\"(error waiting|Can't (add|close)) .*\n", ""),  # or not
    (r"-{3,}", "---"),
    (r"[ \t]{2,}", "  "),
    (r"\s+$", ""),
]


def normal(text: str, ids: dict[str, str]) -> list[str]:
    """Return the lines of a text without what must differ; ids are numbered as they come."""

    def number(match: re.Match[str]) -> str:
        return ids.setdefault(match[0][:12], f"ID{len(ids)}")

    for pattern, word in SHAPES:
        text = re.sub(pattern, word, text, flags=re.MULTILINE)
    text = re.sub(r"\b([0-9a-f]{64}|[0-9a-f]{12})\b", number, text)
    return text.splitlines()


def talk(lab: Lab, backend: str, cli: str, scenario: str) -> list[Said]:
    """Run a scenario on c1 and return what each command said, normalised."""
    urls = {"engine": "unix:///var/run/docker.sock", "arpanet": f"tcp://{lab['h1'].ip}:8791"}
    work = f"/run/contract-{backend}"
    commands = [line.strip() for line in SCENARIOS[scenario].strip().splitlines()]
    lab.client.path(work).mkdir(exist_ok=True)
    lab.client.path(f"{work}/lines").write_text("\n".join(commands) + "\n")
    env = {"DOCKER_HOST": urls[backend], "CLI": CLIS[cli], "WORK": work, "DOCKER_BUILDKIT": "0",
           "MOST_S": f"{40 * SLOW:g}", "DOCKER_CLI_HINTS": "false"}  # fmt: skip
    lab.client.run(["sh", "-c", DRIVER], env=env, timeout=300)
    ids: dict[str, str] = {}
    said = []
    for index, command in enumerate(commands, 100):
        out, err, code = (
            lab.client.path(f"{work}/out/{index}.{stream}").read_text(errors="replace")
            for stream in (1, 2, 3)
        )
        errors = [f"! {line}" for line in normal(err, ids)]
        said.append(Said(command, [*normal(out, ids), *errors, f"exit {code.strip()}"]))
    return said


def differences(engine: list[str], arpanet: list[str]) -> list[str]:
    """Return the lines of the diff of two answers."""
    lines = difflib.unified_diff(engine, arpanet, n=0, lineterm="")
    return [line for line in list(lines)[2:] if not line.startswith("@@")]


def listed(command: str, cli: str) -> list[str]:
    """Return the diff that is listed for a command."""
    found = [d for d in DIFFERENCES if d.command == command and d.cli in ("", cli)]
    return [line.strip() for d in found for line in d.lines.strip().splitlines()]


def wipe(lab: Lab) -> None:
    """Remove from both backends what a failed scenario left."""
    words = (
        "docker rm -f -v $(docker ps -aq); docker network prune -f; docker volume prune -f; "
        "docker rmi -f $(docker images --format '{{.Repository}}:{{.Tag}}' "
        "| grep -v -e ^web: -e ^busybox:); docker image prune -f; true"
    )
    for url in ("unix:///var/run/docker.sock", f"tcp://{lab['h1'].ip}:8791"):
        lab.client.run(["sh", "-c", words], env={"DOCKER_HOST": url})


@pytest.fixture(scope="module")
def two(net: Lab) -> Iterator[Lab]:
    """Yield the lab with arpanet on three hosts, and a bare engine on c1."""
    net.client.start_engine()
    net.client.load_images(cached_images())
    yield net
    net.client.stop_engine()


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("cli", CLIS)
def test_the_docker_cli_says_what_it_says_of_one_engine(two: Lab, cli: str, scenario: str) -> None:
    if not shutil.which(CLIS[cli], path=PATH):
        pytest.skip(f"{CLIS[cli]} is not installed")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        engine, arpanet = pool.map(
            lambda backend: talk(two, backend, cli, scenario), ("engine", "arpanet")
        )
    wrong = []
    for one, other in zip(engine, arpanet, strict=True):
        found, expected = differences(one.lines, other.lines), listed(one.command, cli)
        if [line.strip() for line in found] != expected:
            words = ["listed, but now:" if expected else "not listed:", *(found or ["the same"])]
            wrong.append("\n    ".join([f"$ {one.command}", *words]))
    if wrong:
        wipe(two)
    assert not wrong, "\n" + "\n".join(wrong)


def test_each_listed_difference_is_of_a_command_that_is_run() -> None:
    run = {line.strip() for text in SCENARIOS.values() for line in text.splitlines()}
    assert [d for d in DIFFERENCES if d.command not in run or not d.reason] == []
